"""The step, and what is watched inside it."""
