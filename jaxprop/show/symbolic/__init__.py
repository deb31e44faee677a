"""Local derivatives as formulas, read from the program of JAX's own rule."""
