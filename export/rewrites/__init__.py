"""Rewrites of traced graphs that a runtime would refuse or misread: a file per rule, each with equal results."""
