"""Where shards of work are done."""
