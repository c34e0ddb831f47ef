"""The path of a reading, from the body to the batch that commits it."""
