"""Benchmarks: `python -m eval --help`. Every IoU is counted in `eval.metrics`."""
