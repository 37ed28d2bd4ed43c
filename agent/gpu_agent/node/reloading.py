"""Which settings a running agent takes over when they are read again, and what of it they concern.

Names only: reading and taking over is done elsewhere. What is not named here waits for a restart.
"""

TOLD_ONCE = frozenset({"endpoint", "features", "advanced_features"})
"""What only a registration tells (§3.1)."""

LOOKED_AT = frozenset(
    {
        "hub_roots",
        "ollama_roots",
        "model_directories",
        "cross_file_systems",
        "declared_models",
        "features",
        "advanced_features",
    }
)
"""What the probe goes by where it looks for models."""

AT_ONCE = (
    TOLD_ONCE
    | LOOKED_AT
    | {
        "join_token_file",
        "join_token",
        "proxy",
        "tls_ca_file",
        "tls_pin",
        "tls_cert_file",
        "tls_key_file",
        "insecure_plaintext",
        "log_level",
        "probe_interval_seconds",
        "drain_on_stop_seconds",
        "accept_public_jobs",
        "public_jobs",
        "labels",
        "max_concurrent_jobs",
    }
)
"""All that a running agent can take over."""
