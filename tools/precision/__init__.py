"""Choosing precisions by measurement: runs fp32 graphs, records what linear layers see, tries the result."""
