import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.asking.api import Api
from tests.cli.a_terminal import terminal
from tests.cli.conftest import Served


def known(served: Served) -> bool:
    return served.able in {node["node_id"] for node in served.registry.nodes()}


def test_without_a_terminal_nothing_goes_unless_told_so(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "forget", served.able, "--api", served.api]) == 4
    assert "--yes" in capsys.readouterr().err
    assert known(served)


def test_what_is_lost_is_said(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    api = Api(served.api)
    api.post("/v1/claims", {"job_id": "job-1"})
    api.post(f"/v1/nodes/{served.able}/cordon", {"reason": "odd noise"})
    api.post(f"/v1/nodes/{served.able}/drain", {})
    assert main(["registry", "forget", served.able, "--yes", "--api", served.api]) == 0
    said = capsys.readouterr().out
    for words in (
        "is forgotten",
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
        assert main(["registry", "forget", served.able, "--api", served.api]) == 1
        assert "Type the id to forget it: " in person.said()
        assert known(served)
        person.type(served.able)
        assert main(["registry", "forget", served.able, "--api", served.api]) == 0
    assert not known(served)


def test_json_is_nothing(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "forget", served.able, "--yes", "--json", "--api", served.api]) == 0
    assert capsys.readouterr().out == ""
