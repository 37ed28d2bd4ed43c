"""What outlives a restart of the registry: one promise, kept in several ways."""
