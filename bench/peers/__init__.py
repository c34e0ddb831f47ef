"""Other systems that take readings over HTTP, started from what the machine has."""
