"""How a run keeps what it makes: logs of records, facts of stages, and the manifest that says which of them count."""
