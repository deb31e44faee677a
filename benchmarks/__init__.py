"""Measure the cost of jaxprop: `python -m benchmarks`."""
