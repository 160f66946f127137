"""One command for a machine with a GPU: what runs there, how fast, what could not be run; see `__main__`."""
