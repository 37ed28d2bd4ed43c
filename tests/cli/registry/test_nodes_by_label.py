"""Actions on all nodes with a label: listed first, then one after the other, or so many at the same time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gpu_agent.cli.main import main
from gpu_agent.cli.registry import node_drain
from tests.cli.stand_in import Refusal, Said, StandIn, standing_in
from tests.cli.terminal import terminal

RACK = "GET /v1/nodes?label=rack%3D7"


def node(node_id: str, status: str = "ready", **more: object) -> dict[str, Any]:
    return {"node_id": node_id, "hostname": f"host-of-{node_id}", "status": status, "reason": "asked", **more}


@contextmanager
def rack(*node_ids: str, **answers: Said) -> Iterator[StandIn]:
    """A registry with these nodes in rack 7; `answers`: of actions, by their path below /v1/nodes/."""
    listed = {"nodes": [node(node_id) for node_id in node_ids]}
    with standing_in(
        {RACK: listed, **{f"POST /v1/nodes/{path}": said for path, said in answers.items()}}
    ) as it:
        yield it


def acted(registry: StandIn) -> list[str]:
    """The actions that were requested, in order."""
    return [words.removeprefix("POST /v1/nodes/") for words, _ in registry.asked if words.startswith("POST")]


@pytest.mark.parametrize("action", ["drain", "resume", "cordon", "uncordon"])
def test_without_a_terminal_the_nodes_are_listed_and_nothing_happens(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with rack("a", "b") as registry:
        assert main(["registry", "node", action, "--label", "rack=7", "--server", registry.api]) == 4
        assert acted(registry) == []
    said = capsys.readouterr().err
    assert f"this would {action} 2 nodes:\n  a  host-of-a  ready, 0 jobs in flight\n  b  host-of-b" in said
    assert "Add --yes" in said


def test_on_a_terminal_yes_has_to_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    with rack("a", **{"a/cordon": node("a")}) as registry, terminal(monkeypatch, "stdin", "stderr") as person:
        words = ["registry", "node", "cordon", "--label", "rack=7", "--server", registry.api]
        person.type("no")
        assert main(words) == 1
        assert "host-of-a" in person.said()
        assert acted(registry) == []
        person.type("yes")
        assert main(words) == 0
        assert acted(registry) == ["a/cordon"]


def test_each_node_has_a_line_and_one_that_refuses_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: dict[str, Said] = {
        "a/drain": node("a", "draining"),
        "b/drain": Refusal(409, "NOT_NOW", "not now"),
        "c/drain": node("c", "offline"),
    }
    with rack("a", "b", "c", **answers) as registry:
        words = ["registry", "node", "drain", "--label", "rack=7", "--reason", "fans", "--yes"]
        assert main([*words, "--server", registry.api]) == 1
        assert registry.bodies("POST /v1/nodes/c/drain") == [{"reason": "fans"}]
    said = capsys.readouterr()
    assert said.out == "a is draining: asked\nc is offline: asked\n"
    assert said.err == "gpu-agent: b: not now\ngpu-agent: 1 of 3 was not drained: b\n"


def test_json_is_a_line_for_each_node(capsys: pytest.CaptureFixture[str]) -> None:
    with rack("a", "b", **{"a/resume": node("a"), "b/resume": node("b")}) as registry:
        words = ["registry", "node", "resume", "--label", "rack=7", "--yes", "--json"]
        assert main([*words, "--server", registry.api]) == 0
    assert [json.loads(line)["node_id"] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_labels_are_sent_as_they_are_written_and_no_match_is_a_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with standing_in({"GET /v1/nodes?label=rack%3D7&label=zone%3Da+b": {"nodes": []}}) as registry:
        words = ["registry", "node", "uncordon", "--label", "rack=7", "--label", "zone=a b", "--yes"]
        assert main([*words, "--server", registry.api]) == 1
    assert "no node has --label rack=7 --label 'zone=a b'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["drain"], "See `gpu-agent registry node drain --help`."),
        (["drain", "a", "--label", "rack=7"], "not both"),
        (["drain", "a", "--at-once", "2"], "name them with --label"),
        (["cordon", "--label", "rack=7", "--gpu", "GPU-1"], "not --label"),
        (["drain", "--label", "rack=7", "--at-once", "0"], "0 is not at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "node", *words, "--server", "http://127.0.0.1:9"]) == 4
    assert fault in capsys.readouterr().err


class Rack:
    """A registry's nodes that drain: each is offline at the second reading after its drain has begun."""

    def __init__(self, *node_ids: str, resumed: str = "") -> None:
        self.reads = dict.fromkeys(node_ids, -1)
        self.resumed = resumed
        self.most = 0
        """How many drained at the same time."""

    def status(self, node_id: str) -> str:
        return "ready" if self.reads[node_id] < 0 else "draining" if self.reads[node_id] < 2 else "offline"

    def answers(self) -> dict[str, Any]:
        return {
            RACK: {"nodes": [node(node_id) for node_id in self.reads]},
            **{f"POST /v1/nodes/{node_id}/drain": self.begin(node_id) for node_id in self.reads},
            **{f"GET /v1/nodes/{node_id}": self.read(node_id) for node_id in self.reads},
        }

    def begin(self, node_id: str) -> Callable[[], Said]:
        def answer() -> Said:
            self.reads[node_id] = 0
            self.most = max(self.most, [*map(self.status, self.reads)].count("draining"))
            return node(node_id, "draining", in_flight_jobs=1)

        return answer

    def read(self, node_id: str) -> Callable[[], Said]:
        def answer() -> Said:
            self.reads[node_id] += 1
            status = "ready" if node_id == self.resumed else self.status(node_id)
            return node(node_id, status, drain=None)

        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_drain, "POLL_SECONDS", 0.001)


@pytest.mark.parametrize(("how", "most"), [(["--at-once", "2"], 2), (["--at-once", "1"], 1), (["--wait"], 5)])
def test_no_more_nodes_drain_at_the_same_time_than_allowed(
    how: list[str], most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = Rack("a", "b", "c", "d", "e")
    with standing_in(nodes.answers()) as registry:
        words = ["registry", "node", "drain", "--label", "rack=7", "--yes", *how]
        assert main([*words, "--server", registry.api]) == 0
    assert nodes.most == most
    said = capsys.readouterr()
    assert sorted(said.out.splitlines()) == [f"{one} is offline: asked" for one in "abcde"]
    assert "draining (" in said.err


def test_a_registry_without_a_leader_for_a_while_lets_no_more_nodes_drain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = Rack("a", "b", "c")
    answers, asked = nodes.answers(), 0

    def now_and_then(answer: Callable[[], Said]) -> Callable[[], Said]:
        def refuse() -> Said:
            nonlocal asked
            asked += 1
            return Refusal(503, "REGISTRY_BUSY", "no instance leads") if asked % 2 else answer()

        return refuse

    for path, answer in list(answers.items()):
        if path != RACK:
            answers[path] = now_and_then(answer)
    with standing_in(answers) as registry:
        words = ["registry", "node", "drain", "--label", "rack=7", "--yes", "--at-once", "1"]
        assert main([*words, "--server", registry.api]) == 0
    assert nodes.most == 1
    assert capsys.readouterr().out == "a is offline: asked\nb is offline: asked\nc is offline: asked\n"


def test_a_node_that_is_resumed_meanwhile_is_named_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = Rack("a", "b", "c", resumed="b")
    with standing_in(nodes.answers()) as registry:
        words = ["registry", "node", "drain", "--label", "rack=7", "--yes", "--at-once", "1"]
        assert main([*words, "--server", registry.api]) == 1
    said = capsys.readouterr()
    assert said.out == "a is offline: asked\nc is offline: asked\n"
    assert "b: the drain of b was ended: it is ready\n" in said.err
    assert said.err.endswith("gpu-agent: 1 of 3 was not drained: b\n")


def test_an_interruption_says_how_far_it_is_and_what_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpu_agent.cli.registry.node_drain.time.sleep", interrupted)
    with standing_in(Rack("a", "b", "c").answers()) as registry:
        words = ["registry", "node", "drain", "--label", "rack=7", "--yes", "--at-once", "1"]
        assert main([*words, "--server", registry.api]) == 130
    said = capsys.readouterr().err
    assert "0 of 3 offline, 1 draining (0 jobs in flight), 2 to come. Drains that have begun go on" in said
    assert "`gpu-agent registry node resume --label rack=7` would end them" in said
