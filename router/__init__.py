"""The HTTP face: readings in, status and analytics out."""
