"""The spans a session keeps to, in seconds. None of them is read from an environment here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How patient, how eager and how steady a session is."""

    backoff_first_seconds: float = 1.0
    backoff_ceiling_seconds: float = 60.0
    stability_seconds: float = 120.0
    """Registered for so long, a session forgets its earlier failures."""
    startup_jitter_seconds: float = 1.0
    """The first connection waits a random part of this, so that a fleet does not arrive as one."""
    ack_timeout_seconds: float = 10.0
    """No answer to `node_register` within this is a failed attempt (§3.3)."""
    heartbeat_interval_seconds: float = 15.0
    """Used when an ack names only the warm-up interval."""
    warmup_interval_seconds: float = 2.0
    """Used when an ack names only the steady interval."""
    fallback_interval_seconds: float = 10.0
    """Used always when the ack names neither: an older scheduler (§3.4)."""
    minimum_interval_seconds: float = 0.05
    maximum_interval_seconds: float = 3600.0
    eager_beat_seconds: float = 1.0
    """A change is told by a beat of its own, but never sooner than this after the last one."""
    refresh_patience_seconds: float = 5.0
    """How long a `refresh` waits for the probe before its full beat goes out."""
    register_again_guard_seconds: float = 10.0
    """A second order to register again within this backs off instead."""
    longest_retry_after_seconds: float = 3600.0
    drain_deadline_seconds: float = 600.0
    drain_grace_seconds: float = 5.0
    """How long past a drain's deadline the session waits for the registry's verdict."""
