"""Executors: they run shards of work."""
