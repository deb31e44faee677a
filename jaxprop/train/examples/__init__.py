"""Gradients of single examples, without building them."""
