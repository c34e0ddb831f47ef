"""The archive: months that leave their shards for an object store, and come back."""
