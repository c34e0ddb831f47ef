"""What voltroute is measured against, in the same run."""
