"""Rewrites of traced graphs that make them faster in ONNX Runtime, a file each.

Each takes an `ir.Model`, changes it in place and keeps what it computes (tests/export/test_fusions.py). They
know operators and shapes, never families: whatever matches is rewritten, and whoever else reads a value keeps
it. What each one brings, and what was tried and left out, stands in docs/benchmarks.md.
"""
