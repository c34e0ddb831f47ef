"""The lifecycle of history on one shard: what is due, and the steps that freeze, pack, merge and drop."""
