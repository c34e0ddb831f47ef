"""PostgreSQL itself: drivers, pools, sessions, schema migrations, logins. Knows nothing of buckets but their key."""
