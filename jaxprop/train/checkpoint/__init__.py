"""Checkpoints: a state on disk, and how it is restored."""
