"""How good the estimates are: speech detection against known boundaries, and a bundle as served on recordings.

The figures behind benchmarks/detection.md and docs/demo-tiny.md.
"""
