"""Copies of a whole cluster: dumps of all its databases, as they were at one point."""
