"""A run's figures and its page, from the records alone: no model, no torch."""
