"""What a request to a registry may end with: one class for each thing that a scheduler does next.

`code` is the registry's own word (`docs/reference/api.md`), for programs; the message is a sentence with the
next step.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from gpu_agent.wire.api import Problem

UNREACHABLE = "UNREACHABLE"
INVALID_ANSWER = "INVALID_ANSWER"
INVALID_REQUEST = "INVALID_REQUEST"
CLOSED = "CLIENT_CLOSED"
CLAIM_EXPIRED = "CLAIM_EXPIRED"

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 401, 403, 404, 429
_LOST, _UNAVAILABLE = 502, 503


class RegistryError(Exception):
    """The registry refused a request, or did not answer it."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        counts: Mapping[str, int] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.code = message, code
        self.status = status
        """The status of HTTP; None where there was no answer."""
        self.counts: Mapping[str, int] = counts or {}
        """With `NO_AVAILABLE_NODE`: how many nodes each reason excludes."""
        self.retry_after_seconds = retry_after_seconds
        """The registry asks for the same request again after so long; None where it does not."""


class NoAvailableNode(RegistryError):  # noqa: N818 - the registry's own word
    """No node can take the job now; `counts` says why."""


class ClaimLost(RegistryError):  # noqa: N818 - the registry's own word
    """The claim has ended: `code` says how. Its job may still run, and must not be taken for placed."""


class ClaimSuperseded(ClaimLost):
    """Another claim of the same job is current: this one has ended before."""


class JobIdInUse(RegistryError):  # noqa: N818 - the registry's own word
    """The job id is in use for a job with other demands, or of another owner."""


class NotFound(RegistryError):  # noqa: N818 - the word of HTTP
    """There is no such node, claim or GPU."""


class Forbidden(RegistryError):  # noqa: N818 - the word of HTTP
    """The token is missing or unknown, its role does not suffice, or the claim is another owner's."""


class Busy(RegistryError):  # noqa: N818 - the registry's own word
    """The registry cannot do this now; the same request may be sent again."""


class Unreachable(RegistryError):  # noqa: N818 - an outcome, not a fault of the program
    """No registry answered: it is down, restarts, or the address is wrong. The outcome is not known.

    Or the instance that leads was lost before the answer came through another one (`OUTCOME_UNKNOWN`).
    """


_BY_CODE: Mapping[str, type[RegistryError]] = {
    "NO_AVAILABLE_NODE": NoAvailableNode,
    "CLAIM_SUPERSEDED": ClaimSuperseded,
    "JOB_ID_IN_USE": JobIdInUse,
}
_BY_STATUS: Mapping[int, type[RegistryError]] = {
    _UNAUTHORIZED: Forbidden,
    _FORBIDDEN: Forbidden,
    _NOT_FOUND: NotFound,
    _TOO_MANY: Busy,
    _LOST: Unreachable,
    _UNAVAILABLE: Busy,
}


def closed() -> RegistryError:
    """Report a request of a client that is closed."""
    return RegistryError("the client is closed: use it inside its `with` block", code=CLOSED)


def refusal_of(content: bytes, *, status: int, retry_after: str | None) -> RegistryError:
    """Read a refusal; one without a problem document comes from a proxy before the registry."""
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        return Unreachable(
            f"what answers is no registry (HTTP {status}): is the address right, and is the registry up?",
            code=UNREACHABLE,
            status=status,
        )
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(status, RegistryError)
    return kind(
        problem.detail,
        code=problem.code,
        status=status,
        counts=problem.counts,
        retry_after_seconds=float(retry_after) if retry_after and retry_after.isdecimal() else None,
    )
