"""The command `voltroute`."""
