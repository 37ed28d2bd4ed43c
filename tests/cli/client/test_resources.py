import pytest

from gpu_agent.cli.client.http import CLAIM, NODE_DETAIL, Api
from gpu_agent.cli.client.resources import JobClaim, Node, did_you_mean, nearest_ids
from gpu_agent.cli.command import ExitCode, Failure
from tests.cli.conftest import Served
from tests.cli.stand_in import Refusal, standing_in

IDS = ["node-3ECEA4E2", "node-7F00A1B2", "gpu-box-1", "gpu-box-2", "gpu-box-3", "gpu-box-4"]


@pytest.mark.parametrize(
    ("meant", "near"),
    [
        ("node-3ECEA4E3", ["node-3ECEA4E2"]),
        ("node-3ecea4e2", ["node-3ECEA4E2"]),
        ("3ecea", ["node-3ECEA4E2"]),
        ("7f00", ["node-7F00A1B2"]),
        ("gpu-box", ["gpu-box-1", "gpu-box-2", "gpu-box-3"]),
        ("node-00000000", []),
        ("x", []),
        ("", []),
    ],
)
def test_ids_that_hold_the_word_come_first_then_those_like_it(meant: str, near: list[str]) -> None:
    assert nearest_ids(meant, IDS) == near


def test_nothing_is_said_where_nothing_is_near() -> None:
    assert did_you_mean("nobody", IDS) == ""
    assert did_you_mean("gpu-box", IDS[2:4]) == "; did you mean gpu-box-1 or gpu-box-2?"


def test_a_node_that_is_not_known_is_refused_with_those_that_are_near(served: Served) -> None:
    mistyped = served.able[:-1] + ("0" if served.able[-1] != "0" else "1")
    with pytest.raises(Failure, match=f"did you mean {served.able}") as refused:
        Node(Api(served.api), mistyped).get(shape=NODE_DETAIL)
    assert refused.value.code is ExitCode.REFUSED


def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    with standing_in({"POST /v1/nodes/..%2Fclaims/drain": {}}) as registry:
        Node(Api(registry.api), "../claims").post("drain", {"deadline_seconds": 5.0})
        assert registry.asked[0][1] == {"deadline_seconds": 5.0}


def test_another_refusal_is_told_as_it_is() -> None:
    with (
        standing_in(
            {"DELETE /v1/nodes/n": Refusal(503, "REGISTRY_BUSY", "ask again in a moment")}
        ) as registry,
        pytest.raises(Failure, match=r"^ask again in a moment$"),
    ):
        Node(Api(registry.api), "n").delete()


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
