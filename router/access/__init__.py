"""Who may do what: keys, tenants, and how much."""
