"""Models: loading checkpoints, prompts, and the built-in reasoners."""
