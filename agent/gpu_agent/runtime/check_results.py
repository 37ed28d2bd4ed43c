"""The result of one check: its status, what was seen, and the next step. Redacts tokens."""

from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.runtime.logs import redact_secrets


class CheckStatus(StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    WARN = "warn"
    """It works, and something about it should be known."""
    FAIL = "fail"
    """It keeps the agent from its work."""
    SKIPPED = "skipped"
    """It could not be tried, or there is nothing to try."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was looked at."""

    check: str
    verdict: CheckStatus
    detail: str
    fix: str | None = None

    def __post_init__(self) -> None:
        """Take tokens out, wherever they got in."""
        object.__setattr__(self, "detail", redact_secrets(self.detail))
        if self.fix is not None:
            object.__setattr__(self, "fix", redact_secrets(self.fix))


def ok(check: str, detail: str) -> CheckResult:
    """Say that a thing is well."""
    return CheckResult(check, CheckStatus.OK, detail)


def warn(check: str, detail: str, fix: str) -> CheckResult:
    """Say what should be known of a thing that works."""
    return CheckResult(check, CheckStatus.WARN, detail, fix)


def fail(check: str, detail: str, fix: str) -> CheckResult:
    """Say what keeps the agent from its work."""
    return CheckResult(check, CheckStatus.FAIL, detail, fix)


def skipped(check: str, detail: str) -> CheckResult:
    """Say why a thing was not tried."""
    return CheckResult(check, CheckStatus.SKIPPED, detail)
