"""The control database: shards, map, lease, pairings."""
