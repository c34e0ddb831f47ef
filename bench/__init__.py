"""The bench suite: a black box over HTTP and SQL. Imports nothing of router/ or shards/."""
