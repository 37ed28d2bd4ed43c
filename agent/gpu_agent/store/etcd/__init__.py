"""The store in an etcd cluster: its calls, the lease that makes it one writer's, and the documents there."""
