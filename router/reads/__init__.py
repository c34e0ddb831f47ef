"""Reading a cluster: typed query in, typed answer out; no request inside."""
