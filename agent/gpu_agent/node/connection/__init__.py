"""The connection to the registry: TCP and proxy, TLS, handshake, frames, and its check."""
