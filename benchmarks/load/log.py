"""The registry's own log, read while it runs: the witness of what it thought of its nodes."""

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

OFFENCES = frozenset(
    {
        "connection_evicted",
        "connection_failed",
        "foreign_heartbeat",
        "frame_malformed",
        "handshake_timed_out",
        "handshake_refused",
        "node_register_refused",
        "rate_limited",
        "slow_consumer_dropped",
    }
)
"""What the registry logs of what peers do wrong."""


@dataclass(frozen=True, slots=True)
class StatusChange:
    """One `node_status_changed`."""

    node_id: str
    status: str
    reason_code: str


class RegistryLog:
    """What the registry said since it started, or since `forget`."""

    def __init__(self) -> None:
        self._listening = threading.Event()
        self._ended = False
        self._counts: Counter[str] = Counter()
        self.changes: list[StatusChange] = []
        self.silent_seconds: dict[str, float] = {}
        """By node: how long it had been silent when its timeout was noticed."""
        self.offences: list[dict[str, Any]] = []
        self.last: dict[str, dict[str, Any]] = {}
        self.last_at: dict[str, float] = {}
        """By event: the last line, and when it was read; monotonic seconds."""
        self.first_registered_at = self.last_registered_at = 0.0
        """When the first and the last `node_registered` since the start was read; monotonic seconds."""
        self._figures: list[dict[str, Any]] = []
        self._old_period = False
        self._last_words: list[str] = []

    def read(self, lines: TextIO) -> None:
        """Read to the end; the work of a thread."""
        for line in lines:
            if line.startswith("{"):
                self._take(json.loads(line))
            else:
                self._last_words.append(line)
        self._ended = True
        self._listening.set()

    def forget(self) -> None:
        """Begin again."""
        self._counts.clear()
        self.changes, self.silent_seconds = [], {}
        self.offences, self._figures = [], []
        self._old_period = True  # the next figures are of a period that has begun already

    def await_listening(self, *, within_seconds: float) -> None:
        """Wait for `registry_listening`."""
        if not self._listening.wait(within_seconds) or self._ended:
            raise SystemExit(f"the registry did not start: {''.join(self._last_words[-20:])}")

    def await_gone(self, nodes: Mapping[str, float], *, within_seconds: float) -> None:
        """Wait until these were given up, or the time is over; the caller looks which it was."""
        deadline = time.monotonic() + within_seconds
        while not nodes.keys() <= self.silent_seconds.keys() and time.monotonic() < deadline:
            time.sleep(0.1)

    def count(self, event: str) -> int:
        """How often something was said."""
        return self._counts[event]

    def lag(self) -> tuple[float, float, float]:
        """The loop's lag in milliseconds: the median of all periods, the worst p99, the longest."""
        if not self._figures:
            return (0.0, 0.0, 0.0)
        return (
            statistics.median(one["loop_lag_p50_ms"] for one in self._figures),
            max(one["loop_lag_p99_ms"] for one in self._figures),
            max(one["loop_lag_ms"] for one in self._figures),
        )

    @property
    def beats_per_second(self) -> float:
        """The mean of all periods."""
        return statistics.mean([float(one["beats_per_second"]) for one in self._figures] or [0.0])

    def _take(self, said: dict[str, Any]) -> None:
        event = said["event"]
        self._counts[event] += 1
        self.last[event], self.last_at[event] = said, time.monotonic()
        if event == "registry_listening":
            self._listening.set()
        elif event == "node_status_changed":
            self.changes.append(StatusChange(said["node_id"], said["to"], said["reason_code"]))
        elif event == "node_registered":
            self.last_registered_at = time.monotonic()
            self.first_registered_at = self.first_registered_at or self.last_registered_at
        elif event == "heartbeat_timeout":
            self.silent_seconds[said["node_id"]] = said["last_seen_ms"] / 1000
        elif event == "performance" and self._old_period:
            self._old_period = False
        elif event == "performance":
            self._figures.append(said)
        elif event in OFFENCES:
            self.offences.append(said)
        elif said["level"] == "error":
            self._last_words.append(json.dumps(said) + "\n")
