"""What ops do to a cluster, one verb a module: the only room through which it is changed."""
