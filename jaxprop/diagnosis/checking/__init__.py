"""Whether each derivative rule is the derivative of its function."""
