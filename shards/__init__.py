"""The databases: shard map, pools, stores, catalog, migrations. Knows no HTTP."""
