import pytest

from gpu_agent.cli.answers import CLAIM
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.outcome import Failure
from gpu_agent.cli.registry.claim_action import JobClaim
from tests.cli.conftest import Served


def test_a_claim_that_nobody_holds_is_refused_with_those_that_are_near(served: Served) -> None:
    api = Api(served.api)
    api.post("/v1/claims", {"job_id": "training/run-1"})
    for ask in (lambda claim: claim.renew(CLAIM), JobClaim.release):
        with pytest.raises(Failure, match="did you mean training/run-1"):
            ask(JobClaim(api, "training/run-2"))


def test_a_job_with_a_slash_in_its_id_is_one_job(served: Served) -> None:
    api = Api(served.api)
    api.post("/v1/claims", {"job_id": "a/b"})
    claim = JobClaim(api, "a/b")
    assert claim.renew(CLAIM)["node_id"] == served.able
    claim.release()
    assert api.get("/v1/claims")["claims"] == []
