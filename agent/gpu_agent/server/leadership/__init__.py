"""Several instances of one registry on etcd: one leads, the others are warm standbys."""
