"""What the leader does in the background."""
