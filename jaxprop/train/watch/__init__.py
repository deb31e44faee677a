"""Watching the inside of a training step: what is recorded, how often, and how it is read."""
