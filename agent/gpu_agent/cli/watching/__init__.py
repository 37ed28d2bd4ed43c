"""`registry nodes --watch`: what changes among the nodes, drawn as it happens."""
