"""Every node's status and every job's place: pure, events in, actions out."""
