"""The reading core: the graph of a program, and one evaluation of it with taps and rules."""
