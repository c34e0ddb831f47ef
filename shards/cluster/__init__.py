"""A router's view of a cluster that runs."""
