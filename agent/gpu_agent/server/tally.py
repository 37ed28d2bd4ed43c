"""What happened since the start of the registry, counted by kind. Keeps no event.

Every set of counters is bounded by what our own code can say, never by what a peer sends.
"""

from collections import Counter
from collections.abc import Mapping


class Tally:
    """Counts since the start."""

    def __init__(self) -> None:
        self.registrations = 0
        self.refusals: Counter[str] = Counter()
        """Refused registrations by code."""
        self.status_changes: Counter[tuple[str, str, str]] = Counter()
        """By status before, status after and reason code."""
        self.claims: Counter[str] = Counter(dict.fromkeys(_CLAIMS.values(), 0))
        self.failures = 0
        """Jobs for which there was no node."""
        self.exclusions: Counter[str] = Counter()
        """Nodes that fell to a reason, over all jobs for which there was none."""
        self._count_of = {
            "node_registered": self._registered,
            "node_register_refused": self._refused,
            "node_status_changed": self._changed,
            "dispatch_failed": self._failed,
        }

    def count(self, event: str, fields: Mapping[str, object]) -> None:
        """Count what an event of §8 tells of."""
        outcome = _CLAIMS.get(event)
        if outcome is not None:
            self.claims[outcome] += 1
        elif (count := self._count_of.get(event)) is not None:
            count(fields)

    def _registered(self, _: Mapping[str, object]) -> None:
        self.registrations += 1

    def _refused(self, fields: Mapping[str, object]) -> None:
        self.refusals[str(fields.get("code"))] += 1

    def _changed(self, fields: Mapping[str, object]) -> None:
        source, target, reason = (str(fields.get(name) or "none") for name in ("from", "to", "reason_code"))
        self.status_changes[source, target, reason] += 1

    def _failed(self, fields: Mapping[str, object]) -> None:
        self.failures += 1
        counts = fields.get("counts")
        if isinstance(counts, Mapping):
            self.exclusions.update(counts)


_CLAIMS = {
    "job_assigned": "granted",
    "claim_released": "released",
    "claim_lost": "lost",
    "claim_expired": "expired",
    "claim_found_again": "found_again",
}
