"""Everything around the road: the command line, the demo model, evaluation, parity, pictures."""
