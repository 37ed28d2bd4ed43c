"""Three instances on three members of etcd, each on a machine of its own, and what they may lose."""
