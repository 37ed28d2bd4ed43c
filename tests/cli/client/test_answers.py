import pytest

from gpu_agent.cli.client.http import NODE_DETAIL, NODES, Api, Kind, ListOf, missing_part
from tests.cli.conftest import Served


def test_a_real_registrys_answers_have_their_shapes(served: Served) -> None:
    api = Api(served.api)
    listed = api.get("/v1/nodes", NODES)
    assert {node["node_id"] for node in listed["nodes"]} == {served.able, served.new}
    assert api.get(f"/v1/nodes/{served.able}", NODE_DETAIL)["events"]


@pytest.mark.parametrize(
    ("document", "kind", "lacks"),
    [
        ({"a": 1, "more": 2}, int, None),
        ({}, int, "a"),
        ({"a": None}, int, "a"),
        ({"a": None}, float | None, None),
        ({}, float | None, "a"),
        ({"a": []}, ListOf({"b": str}), None),
        ({"a": 5}, ListOf({"b": str}), "a"),
        ({"a": [5]}, ListOf({"b": str}), "a[]"),
        ({"a": [{"b": ""}, {"b": 1}]}, ListOf({"b": str}), "a[].b"),
    ],
)
def test_the_first_thing_that_is_lacking_is_named(
    document: dict[str, object], kind: Kind, lacks: str | None
) -> None:
    assert missing_part(document, {"a": kind}) == lacks
