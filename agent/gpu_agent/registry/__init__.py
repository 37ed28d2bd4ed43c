"""Every node's status and every job's claim: pure, events in, changes and effects out."""
