"""`docs/reference/local.md` shows conversations that happen, and names every state, refusal and bound."""

import ast
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent.local.connection import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES
from gpu_agent.node.control.handlers import ASKS
from gpu_agent.node.control.server import ControlLimits
from gpu_agent.node.jobs import MAX_JOB_ID_LENGTH
from gpu_agent.session.types import State
from gpu_agent.wire.messages import NodeStatusMessage
from tests.node.control_harness import FakeAgent, serving, snapshot

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "local.md").read_text(encoding="utf-8")
ELLIPSIS = '"…"'


def conversations() -> Iterator[list[tuple[str, object]]]:
    """Each block of questions and answers: who speaks, and what, with `…` for whatever stands there."""
    for block in re.findall(r"```\n(>.*?)```", PAGE, re.DOTALL):
        said = re.sub(r"\n< {2}", " ", block)
        yield [(line[0], _read(line[2:])) for line in said.splitlines()]


def _read(line: str) -> object:
    """A line with `…` as JSON: for a value any value, at the end of an object any more fields."""
    return json.loads(line.replace(", …}", f", {ELLIPSIS}: 0}}").replace(": …", f": {ELLIPSIS}"))


def alike(shown: object, true: object) -> bool:
    match shown, true:
        case "…", _:
            return True
        case dict(), dict():
            more = "…" in shown
            named = {name: value for name, value in shown.items() if name != "…"}
            return (named.keys() <= true.keys() if more else named.keys() == true.keys()) and all(
                alike(value, true[name]) for name, value in named.items()
            )
        case list(), list():
            return len(shown) == len(true) and all(map(alike, shown, true))
        case _:
            return shown == true


@pytest.mark.parametrize("spoken", [*conversations()], ids=lambda spoken: spoken[0][1]["ask"])
def test_the_conversations_that_are_shown_happen(spoken: list[tuple[str, object]], tmp_path: Path) -> None:
    with serving(tmp_path / "s") as served, socket.socket(socket.AF_UNIX) as program:
        program.settimeout(20)
        program.connect(str(served.path))
        lines = program.makefile("rw")
        for speaker, words in spoken:
            if speaker == ">":
                lines.write(json.dumps(words) + "\n")
                lines.flush()
            else:
                true = json.loads(lines.readline())
                assert alike(words, true), true
        lines.close()


def test_every_question_is_shown() -> None:
    asked = {words["ask"] for spoken in conversations() for who, words in spoken if who == ">"}  # type: ignore[index]  # a question is an object
    assert asked == set(ASKS)


def test_every_state_is_explained() -> None:
    table = PAGE.split("| `state` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [state.value for state in State]


def test_every_refusal_is_explained_and_none_besides() -> None:
    given = {
        call.args[0].value
        for source in (ROOT / "agent" / "gpu_agent" / "node" / "control").glob("*.py")
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") == "ControlRefusal"
        and isinstance(call.args[0], ast.Constant)
    }
    table = PAGE.split("### Why not")[1].split("|---|---|")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == given


def test_the_bounds_are_the_true_ones() -> None:
    said, bounds = PAGE.replace("\n", " "), ControlLimits()
    for words in (
        f"at most {MAX_REQUEST_BYTES} bytes and comes within {bounds.question_seconds:g} s",
        f"at most {MAX_ANSWER_BYTES // 2**20} MiB, is taken within {bounds.read_seconds:g} s",
        f"At most {bounds.connections} programs are connected at once, {bounds.per_user} of any one user",
        f"{bounds.reserved_for_operators} connections are reserved for those who may give orders",
        f"did not get to it within {bounds.answer_seconds:g} s",
        f"up to {MAX_JOB_ID_LENGTH} printable",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("status", "words"), [("ready", "node-A is ready\n"), ("degraded", "node-A is not ready\n")]
)
def test_the_programs_that_are_shown_work(status: str, words: str, tmp_path: Path) -> None:
    with_job, asking = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    agent = FakeAgent()
    agent.state = snapshot(registry_status=NodeStatusMessage(node_id="node-A", status=status, reason="so"))
    with serving(tmp_path / "s", agent=agent) as served:
        environment = {"GPU_AGENT_SOCKET": str(served.path)}
        for program, said in (
            (with_job.replace("...", "print(local.ask('job_list'))"), "job-7"),
            (asking, words),
        ):
            done = subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
            )
            assert said in done.stdout
