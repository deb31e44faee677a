"""Checkpoints: what a state is on disk, and how it comes back."""
