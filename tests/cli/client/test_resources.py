import pytest

from gpu_agent.cli.client.http import Api
from gpu_agent.cli.client.resources import Node, did_you_mean, nearest_ids, release_claim, renew_claim
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.wire.api import NodeDetail
from tests.cli.conftest import Served
from tests.cli.stand_in import Answer, Refusal, standing_in

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


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("other", IDS) == ""
    assert did_you_mean("gpu-box", IDS[2:4]) == "; did you mean gpu-box-1 or gpu-box-2?"


def test_a_node_that_is_not_known_is_refused_with_those_that_are_near(served: Served) -> None:
    mistyped = served.able[:-1] + ("0" if served.able[-1] != "0" else "1")
    with pytest.raises(Failure, match=f"did you mean {served.able}") as refused:
        Node(Api(served.api), mistyped).detail()
    assert refused.value.code is ExitCode.REFUSED


def test_who_names_a_hostname_is_told_the_id_of_that_node() -> None:
    answers: dict[str, Answer] = {
        "POST /v1/nodes/vm/drain": Refusal(404, "UNKNOWN_NODE", "no node 'vm' is known"),
        "GET /v1/nodes": {"nodes": [{"node_id": "node-1", "hostname": "vm"}]},
    }
    with standing_in(answers) as registry, pytest.raises(Failure) as refused:
        Node(Api(registry.api), "vm").act("drain", NodeDetail)
    assert str(refused.value) == "no node 'vm' is known; that is the hostname of node-1: name the id"


def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    with standing_in({"POST /v1/nodes/..%2Fclaims/drain": {}}) as registry:
        Node(Api(registry.api), "../claims").act("drain", NodeDetail, {"deadline_seconds": 5.0})
        assert registry.asked[0][1] == {"deadline_seconds": 5.0}


def test_another_refusal_is_shown_as_it_is() -> None:
    with (
        standing_in(
            {"DELETE /v1/nodes/n": Refusal(503, "REGISTRY_BUSY", "ask again in a moment")}
        ) as registry,
        pytest.raises(Failure, match=r"^ask again in a moment$"),
    ):
        Node(Api(registry.api), "n").remove()


def test_an_unknown_claim_is_refused_with_those_that_are_near(served: Served) -> None:
    api = Api(served.api)
    api.request("POST", "/v1/claims", {"job_id": "training/run-1"})
    with pytest.raises(Failure, match="did you mean training/run-1"):
        renew_claim(api, "training/run-2")
    with pytest.raises(Failure, match="did you mean training/run-1"):
        release_claim(api, "training/run-2")


def test_a_job_with_a_slash_in_its_id_is_one_job(served: Served) -> None:
    api = Api(served.api)
    api.request("POST", "/v1/claims", {"job_id": "a/b"})
    assert renew_claim(api, "a/b").model.node_id == served.able
    release_claim(api, "a/b")
    assert api.request("GET", "/v1/claims")["claims"] == []
