"""The endpoints, and what surrounds them."""
