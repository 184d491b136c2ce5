"""Text-generation backends."""
