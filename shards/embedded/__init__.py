"""Real PostgreSQL servers on this machine, from a wheel: for `voltroute up`, the demo and the tests."""
