import pytest

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.node_action import Node
from tests.cli.conftest import Served
from tests.cli.stand_in import Refusal, standing_in


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
