import io
import json
import signal
import subprocess
from typing import Any

import pytest

from gpu_agent.cli.client.http import Api
from gpu_agent.cli.output.screen import LiveLines
from gpu_agent.cli.output.text import plain_text
from gpu_agent.cli.output.watch import State, drawer, printer
from gpu_agent.cli.registry.watch import FROM_EVENTS, Freshness, Nodes, fit_nodes, node_list_page, update_of
from gpu_agent.wire.api import NodeList
from tests.cli.answers import answer_of
from tests.cli.conftest import Served
from tests.cli.terminal import OnTerminal
from tests.programs import COMMAND, Registry, eventually
from tests.waiting import patience

LOST = Freshness(State.GONE, "the registry has gone")
NOW = 1_000_000.0
PAGE = node_list_page()


def node(node_id: str = "n", status: str = "ready", **more: object) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "hostname": node_id,
        "status": status,
        "reason_code": "r",
        "reason": f"why {node_id}",
        "since": NOW,
        "connected": True,
        "gpus": [{"name": "L4", "health": "ok"}],
        "installed_models": [],
        "in_flight_jobs": 0,
        "max_concurrent_jobs": 4,
        "last_heartbeat_age_seconds": 1.0,
        **more,
    }


def answer(*nodes: dict[str, Any]) -> Nodes:
    return answer_of(NodeList, {"auth": "on", "nodes": list(nodes)})


def test_a_pipe_gets_the_list_then_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    view, first = printer(PAGE), answer(node())
    for one in (first, first, answer(node(last_heartbeat_age_seconds=2.0)), answer(node(status="degraded"))):
        view(update_of(one, FROM_EVENTS, read_at=NOW))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("HOST")
    assert [line[10:] for line in lines[2:]] == ["n (n)  ready → degraded: why n"]


def test_an_empty_list_says_how_to_start_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    printer(PAGE)(update_of(answer(), FROM_EVENTS, read_at=NOW))
    assert "gpu-agent run" in capsys.readouterr().out


def test_how_current_the_list_is_goes_once_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    view = printer(PAGE)
    for freshness in (FROM_EVENTS, FROM_EVENTS, LOST, LOST, FROM_EVENTS):
        view(update_of(answer(node()), freshness, read_at=NOW))
    assert capsys.readouterr().err == "gpu-agent: the registry has gone\ngpu-agent: the registry is back\n"


def test_a_registry_that_goes_is_reported_while_polling_too(capsys: pytest.CaptureFixture[str]) -> None:
    view = printer(PAGE)
    polling = Freshness(State.POLLING, "reading every 2 s")
    for freshness in (polling, polling, LOST, Freshness(State.GONE, "still gone"), polling):
        view(update_of(answer(node()), freshness, read_at=NOW))
    assert capsys.readouterr().err.splitlines() == [
        "gpu-agent: reading every 2 s",
        "gpu-agent: the registry has gone",
        "gpu-agent: reading every 2 s",
    ]


def test_json_is_a_whole_answer_on_a_line_whenever_something_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = printer(PAGE, as_json=True)
    shown = [
        answer(node()),
        answer(node(last_heartbeat_age_seconds=2.0)),
        answer(node(), node("m")),
    ]
    for one in shown:
        view(update_of(one, FROM_EVENTS, read_at=NOW))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        shown[0].document,
        shown[2].document,
    ]


def test_a_screen_shows_the_list_and_how_current_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    written = io.StringIO()
    with LiveLines(terminal=written) as live:
        view = drawer(PAGE, live)
        view(update_of(answer(node("node-1")), FROM_EVENTS, read_at=NOW))
        view(update_of(answer(), LOST, read_at=NOW))
        said = written.getvalue()
    for words in ("node-1", "sends each change; Ctrl-C ends", "gpu-agent run", "the registry has gone"):
        assert words in said


def test_what_does_not_fit_is_counted_and_the_urgent_come_first() -> None:
    nodes = [node(f"node-{number:02}") for number in range(40)]
    nodes[30] = node("node-30", "degraded")
    nodes[31] = node("node-31", connected=False)
    lines = [plain_text(one) for one in fit_nodes(answer(*nodes).model, (80, 10), now=NOW)]
    assert len(lines) <= 10
    assert lines[1].startswith("node-30")
    assert lines[2].strip().startswith("node-31") or "why node-30" in lines[2]
    assert any(line.startswith("node-31") for line in lines)
    shown = sum(line.startswith("node-") for line in lines)
    assert lines[-1].startswith(f"{40 - shown} nodes not shown; 40 nodes: ")


def test_a_status_that_this_release_does_not_know_comes_before_all_others() -> None:
    nodes = [node(f"node-{number:02}") for number in range(40)]
    nodes[30], nodes[31] = node("node-30", "degraded"), node("node-31", "quarantined")
    lines = [plain_text(one) for one in fit_nodes(answer(*nodes).model, (80, 10), now=NOW)]
    shown = [line.split()[0] for line in lines if line.startswith("node-")]
    assert shown[:2] == ["node-31", "node-30"]


def test_what_fits_is_shown_in_its_order() -> None:
    lines = [
        plain_text(one)
        for one in fit_nodes(answer(node("a"), node("b", "degraded")).model, (80, 20), now=NOW)
    ]
    assert [line[0] for line in lines[1:3]] == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_shows_each_change_and_is_restored(served: Served, number: signal.Signals) -> None:
    with OnTerminal("registry", "node", "list", "--watch", "--server", served.api) as watch:
        watch.await_words("Ctrl-C ends")
        Api(served.api).request("POST", f"/v1/nodes/{served.able}/cordon", {"reason": "odd noise"})
        watch.await_words("odd noise")
        watch.send(number)
        assert watch.wait() == 0
        _, left = watch.shown.rsplit("\x1b[?1049l", 1)
    assert "\x1b[?25h" in watch.shown
    assert served.able in left
    assert "Traceback" not in watch.shown


def test_a_registry_that_restarts_is_waited_for() -> None:
    with Registry() as registry:
        port = registry.operator_port
        watch = OnTerminal("registry", "node", "list", "--watch", "--server", registry.api)
        watch.await_words("No node is registered")
    with watch:
        watch.await_words("has gone")
        with Registry(operator_port=port):
            eventually(
                lambda: watch.shown.rfind("sends each change") > watch.shown.rfind("has gone"),
                within_seconds=20,
                what="a current list again",
            )
            watch.send(signal.SIGINT)
            assert watch.wait() == 0


def test_a_registry_that_never_answered_is_reported_outside_the_screen() -> None:
    with OnTerminal("registry", "node", "list", "--watch", "--server", "http://127.0.0.1:9") as watch:
        assert watch.wait() == 5
    assert "no registry answers" in watch.shown
    assert "\x1b[?1049h" not in watch.shown


def test_a_pipe_gets_changes_until_its_reader_leaves(served: Served) -> None:
    words = [*COMMAND, "registry", "node", "list", "--watch", "--server", served.api]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        read = iter(watch.stdout.readline, "")
        table = [next(read) for _ in ("auth", "heads", "a node", "the other")]
        assert served.new in "".join(table)
        node = f"/v1/nodes/{served.able}"
        Api(served.api).request("POST", f"{node}/cordon", {"reason": "odd noise"})
        assert next(read).rstrip().endswith(f"{served.able}  cordoned: odd noise")
        watch.stdout.close()
        Api(served.api).request("POST", f"{node}/uncordon", {})
        assert watch.wait(patience(15)) == 0


def test_json_lines_are_whole_answers(served: Served) -> None:
    words = [
        *COMMAND,
        "registry",
        "node",
        "list",
        "--watch",
        "--json",
        "--status",
        "ready",
        "--server",
        served.api,
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        assert [node["node_id"] for node in first["nodes"]] == [served.able]
        Api(served.api).request("POST", f"/v1/nodes/{served.able}/drain", {})
        assert json.loads(watch.stdout.readline())["nodes"] == []
        watch.send_signal(signal.SIGINT)
        assert watch.wait(patience(15)) == 0
