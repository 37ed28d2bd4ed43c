"""What actions on one claim share: asking, and helping where no claim of the job is held."""

from typing import Any

from gpu_agent.cli.answers import ANYTHING, CLAIMS, Shape
from gpu_agent.cli.asking.api import Api, Refused, quoted
from gpu_agent.cli.asking.paging import listed
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.near import did_you_mean

_NOT_FOUND = "CLAIM_NOT_FOUND"


class JobClaim:
    """The claim of one job; every method raises `Failure`."""

    def __init__(self, api: Api, job_id: str) -> None:
        self.job_id = job_id
        self._api = api
        self._path = f"/v1/claims/{quoted(job_id)}"

    def renew(self, shape: Shape) -> dict[str, Any]:
        """Keep the place for one more TTL."""
        return self._asked("POST", "/renew", shape)

    def release(self) -> None:
        """Give the place back."""
        self._asked("DELETE", "", ANYTHING)

    def _asked(self, method: str, part: str, shape: Shape) -> dict[str, Any]:
        body: dict[str, object] | None = None if method == "DELETE" else {}
        try:
            return self._api.ask(method, f"{self._path}{part}", body=body, shape=shape)
        except Refused as refused:
            if refused.problem.code != _NOT_FOUND:
                raise
            claims = listed(self._api, "/v1/claims", CLAIMS, key="claims")["claims"]
            hint = did_you_mean(self.job_id, (str(claim["job_id"]) for claim in claims))
            raise Failure(f"{refused}{hint}", code=ExitCode.REFUSED) from None
