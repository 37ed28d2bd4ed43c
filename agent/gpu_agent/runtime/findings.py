"""What came of looking at one thing: a verdict, what was seen, and how to mend it.

Words for people. It looks at nothing itself, and it lets no token through.
"""

from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.runtime.redaction import without_secrets


class Verdict(StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    WARN = "warn"
    """It works, and something about it should be known."""
    FAIL = "fail"
    """It keeps the agent from its work."""
    SKIPPED = "skipped"
    """It could not be tried, or there is nothing to try."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    verdict: Verdict
    detail: str
    mend: str | None = None

    def __post_init__(self) -> None:
        """Take tokens out, wherever they got in."""
        object.__setattr__(self, "detail", without_secrets(self.detail))
        if self.mend is not None:
            object.__setattr__(self, "mend", without_secrets(self.mend))


def ok(check: str, detail: str) -> Finding:
    """Say that a thing is well."""
    return Finding(check, Verdict.OK, detail)


def warn(check: str, detail: str, mend: str) -> Finding:
    """Say what should be known of a thing that works."""
    return Finding(check, Verdict.WARN, detail, mend)


def fail(check: str, detail: str, mend: str) -> Finding:
    """Say what keeps the agent from its work."""
    return Finding(check, Verdict.FAIL, detail, mend)


def skipped(check: str, detail: str) -> Finding:
    """Say why a thing was not tried."""
    return Finding(check, Verdict.SKIPPED, detail)
