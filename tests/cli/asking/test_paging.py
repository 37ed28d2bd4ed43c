from gpu_agent.cli.answers import NODES
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.paging import listed
from tests.cli.conftest import Served
from tests.cli.stand_in import standing_in


def test_pages_come_together_as_one_answer() -> None:
    pages = {
        "GET /v1/things?colour=red+%26+blue": {"auth": "on", "things": [1, 2], "count": 2, "next": "b c"},
        "GET /v1/things?colour=red+%26+blue&after=b+c": {
            "auth": "on",
            "things": [3],
            "count": 1,
            "next": None,
        },
    }
    with standing_in(pages) as registry:
        whole = listed(
            Api(registry.api), "/v1/things", {"things": list}, key="things", query=[("colour", "red & blue")]
        )
    assert whole == {"auth": "on", "things": [1, 2, 3], "count": 3, "next": None}


def test_a_page_with_nothing_on_it_is_the_last_whatever_it_says() -> None:
    with standing_in(
        {"GET /t": {"t": [1], "next": "a"}, "GET /t?after=a": {"t": [], "next": "a"}}
    ) as registry:
        assert listed(Api(registry.api), "/t", {"t": list}, key="t")["t"] == [1]


def test_a_real_registrys_pages_are_all_of_its_nodes(served: Served) -> None:
    found = listed(Api(served.api), "/v1/nodes", NODES, key="nodes", query=[("limit", "1")])
    assert {node["node_id"] for node in found["nodes"]} == {served.able, served.new}
    assert (found["count"], found["next"]) == (2, None)
