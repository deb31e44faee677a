"""The chain rule of a function in words and numbers, and as a quiz."""
