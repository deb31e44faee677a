"""What jaxprop costs, measured: `python -m benchmarks`."""
