"""The store of a run: logs of records, facts of stages, and the manifest of the current ones."""
