"""A simulated fleet, and the client with which devices and files post to a router."""
