"""What a shard stores: tables, partitions, the statements that write and read them."""
