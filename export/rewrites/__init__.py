"""Rewrites of traced graphs that a runtime would refuse or misread: equal results, a file per rule."""
