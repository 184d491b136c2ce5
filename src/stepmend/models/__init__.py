"""Checkpoints: loading them, what they are asked, and the built-in ones."""
