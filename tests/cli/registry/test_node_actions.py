import json

import pytest

from gpu_agent.cli.client.http import Api
from gpu_agent.cli.main import main
from tests.cli.conftest import Served
from tests.cli.stand_in import standing_in
from tests.cli.terminal import terminal


def test_a_cordoned_node_is_reported_what_stays(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    Api(served.api).request("POST", "/v1/claims", {"job_id": "job-1"})
    words = ["registry", "node", "cordon", served.able, "--reason", "odd noise", "--server", served.api]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "no new jobs" in said
    assert "is ready, and keeps its 1 job" in said
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cordoned"] == "odd noise"


def test_an_uncordoned_node_shows_what_else_excludes_it(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    for node_id, words in ((served.able, "new jobs now"), (served.new, "once it is ready and connected")):
        assert main(["registry", "node", "cordon", node_id, "--server", served.api]) == 0
        assert main(["registry", "node", "uncordon", node_id, "--server", served.api]) == 0
        assert words in capsys.readouterr().out
    assert main(["registry", "node", "uncordon", served.able, "--json", "--server", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["cordoned"] is None


def test_a_drained_node_is_resumed(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "drain", served.able, "--server", served.api]) == 0
    assert main(["registry", "node", "resume", served.able, "--server", served.api]) == 0
    assert f"{served.able} is registering: " in capsys.readouterr().out
    assert main(["registry", "node", "resume", served.able, "--json", "--server", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["drain"] is None


@pytest.mark.parametrize("action", ["refresh", "reregister", "check"])
def test_the_node_gets_the_command_and_the_person_reads_what_follows(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"POST /v1/nodes/node-7/{action}"
    with standing_in({path: {"node_id": "node-7"}}) as registry:
        assert main(["registry", "node", action, "node-7", "--server", registry.api]) == 0
        assert "node-7 was asked to" in capsys.readouterr().out
        assert main(["registry", "node", action, "node-7", "--json", "--server", registry.api]) == 0
        assert json.loads(capsys.readouterr().out)["node_id"] == "node-7"
        assert registry.bodies(path) == [{}, {}]


def test_the_reason_of_each_action_is_in_the_events(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    api, node = Api(served.api), ["registry", "node"]
    api.request("POST", "/v1/claims", {"job_id": "job-1"})
    for words in (
        [*node, "uncordon", served.able],
        [*node, "check", served.able],
        [*node, "refresh", served.able],
        [*node, "reregister", served.able],
        ["registry", "claim", "release", "job-1"],
        [*node, "resume", served.able],
        [*node, "remove", served.able, "--yes"],
    ):
        assert main([*words, "--reason", f"why {words[2]} & more", "--server", served.api]) == 0, words
    capsys.readouterr()
    assert main(["registry", "event", "list", "--json", "--server", served.api]) == 0
    events = map(json.loads, capsys.readouterr().out.splitlines())
    said = [one["fields"]["reason"] for one in events if "why" in str(one["fields"].get("reason"))]
    actions = ("uncordon", "check", "refresh", "reregister", "release", "resume", "remove")
    assert said == [f"why {action} & more" for action in actions]


def known(served: Served) -> bool:
    return served.able in {node["node_id"] for node in served.registry.nodes()}


def test_without_a_terminal_nothing_goes_unless_reported_so(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", "remove", served.able, "--server", served.api]) == 4
    assert "--yes" in capsys.readouterr().err
    assert known(served)


def test_what_is_lost_is_shown(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api(served.api)
    api.request("POST", "/v1/claims", {"job_id": "job-1"})
    api.request("POST", f"/v1/nodes/{served.able}/cordon", {"reason": "odd noise"})
    api.request("POST", f"/v1/nodes/{served.able}/drain", {})
    assert main(["registry", "node", "remove", served.able, "--yes", "--server", served.api]) == 0
    said = capsys.readouterr().out
    for words in (
        "is removed",
        "draining, connected",
        "join token",
        "job-1",
        "odd noise",
        "its drain",
        "history",
    ):
        assert words in said
    assert not known(served)


def test_on_a_terminal_the_id_has_to_be_typed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stdin", "stderr") as person:
        person.type("yes")
        assert main(["registry", "node", "remove", served.able, "--server", served.api]) == 1
        assert "Type the id to remove it: " in person.said()
        assert known(served)
        person.type(served.able)
        assert main(["registry", "node", "remove", served.able, "--server", served.api]) == 0
    assert not known(served)


def test_json_is_nothing(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "node", "remove", served.able, "--yes", "--json", "--server", served.api]) == 0
    assert capsys.readouterr().out == ""
