"""Plain forward-only SQL, applied by shards.migrate."""
