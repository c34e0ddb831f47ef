"""Bulk load: years of readings straight into packed days and rollups, without the hot path."""
