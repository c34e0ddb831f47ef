"""Current statuses kept in Redis or Valkey: optional, and never older than what was acknowledged."""
