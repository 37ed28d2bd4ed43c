import json
import signal
import subprocess

import pytest

from gpu_agent.cli.asking.api import Api
from tests.cli.a_terminal import OnTerminal
from tests.cli.conftest import Served
from tests.programs import COMMAND, Registry, eventually


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_shows_each_change_and_is_given_back_whole(served: Served, number: signal.Signals) -> None:
    with OnTerminal("registry", "nodes", "--watch", "--api", served.api) as watch:
        watch.await_words("Ctrl-C ends")
        Api(served.api).post(f"/v1/nodes/{served.able}/cordon", {"reason": "odd noise"})
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
        watch = OnTerminal("registry", "nodes", "--watch", "--api", registry.api)
        watch.await_words("No node is registered")
    with watch:
        watch.await_words("has gone")
        with Registry(operator_port=port):
            eventually(
                lambda: watch.shown.rfind("as it happens") > watch.shown.rfind("has gone"),
                within_seconds=20,
                what="told as it happens again",
            )
            watch.send(signal.SIGINT)
            assert watch.wait() == 0


def test_a_registry_that_never_was_there_is_told_in_the_open() -> None:
    with OnTerminal("registry", "nodes", "--watch", "--api", "http://127.0.0.1:9") as watch:
        assert watch.wait() == 5
    assert "no registry answers" in watch.shown
    assert "\x1b[?1049h" not in watch.shown


def test_a_pipe_gets_changes_until_its_reader_leaves(served: Served) -> None:
    words = [*COMMAND, "registry", "nodes", "--watch", "--api", served.api]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        read = iter(watch.stdout.readline, "")
        table = [next(read) for _ in ("auth", "heads", "a node", "the other")]
        assert served.new in "".join(table)
        node = f"/v1/nodes/{served.able}"
        Api(served.api).post(f"{node}/cordon", {"reason": "odd noise"})
        assert next(read).rstrip().endswith(f"{served.able}  cordoned: odd noise")
        watch.stdout.close()
        Api(served.api).post(f"{node}/uncordon", {})
        assert watch.wait(15) == 0


def test_json_lines_are_whole_answers(served: Served) -> None:
    words = [*COMMAND, "registry", "nodes", "--watch", "--json", "--status", "ready", "--api", served.api]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        assert [node["node_id"] for node in first["nodes"]] == [served.able]
        Api(served.api).post(f"/v1/nodes/{served.able}/drain", {})
        assert json.loads(watch.stdout.readline())["nodes"] == []
        watch.send_signal(signal.SIGINT)
        assert watch.wait(15) == 0
