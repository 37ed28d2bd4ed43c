import json
import os
import re
import signal
import string
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_agent import registry, server
from gpu_agent.cli.client import events as following
from gpu_agent.cli.main import main
from gpu_agent.cli.output.text import plain_text
from gpu_agent.cli.output.units import clock
from gpu_agent.cli.registry.events import event_lines
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import MISSED, SENTENCES
from tests.cli.conftest import Served
from tests.cli.stand_in import Refusal, Stream, standing_in
from tests.programs import COMMAND
from tests.waiting import patience

PATH = "GET /v1/events"


def event(number: int, node_id: str | None = "n") -> dict[str, object]:
    return {
        "id": number,
        "at": 1.0,
        "event": "claim_expired",
        "node_id": node_id,
        "fields": {"job_id": f"j{number}"},
    }


def sent(*events: dict[str, object]) -> Stream:
    return Stream([f"id: {one['id']}\ndata: {json.dumps(one)}\n\n" for one in events])


def test_a_nodes_history_is_one_line_an_event(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "event", "list", served.able, "--limit", "2", "--server", served.api]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[-1].endswith("registering → ready: health_checks_passed")
    assert main(["registry", "event", "list", served.able, "--json", "--server", served.api]) == 0
    assert json.loads(capsys.readouterr().out)["node_id"] == served.able


def test_what_happened_to_all_lately_is_shown(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "event", "list", "--server", served.api]) == 0
    said = capsys.readouterr().out
    assert f"{served.able}  registering → ready: health_checks_passed" in said
    assert f"{served.new}  new → registering: registered" in said
    assert main(["registry", "event", "list", "--limit", "1", "--json", "--server", served.api]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "node_status_changed"


def test_what_happened_behind_an_event_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    past = sent(event(8), event(9))
    query = "after=7&follow=false"
    with standing_in({f"{PATH}?{query}": past, f"{PATH}?{query}&node_id=n": past}) as registry:
        for whose in ([], ["n"]):
            assert main(["registry", "event", "list", *whose, "--after", "7", "--server", registry.api]) == 0
    assert capsys.readouterr().out.count("claim of job j9 expired") == 2


def test_a_history_that_is_not_whole_begins_where_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    missed = {"at": 1.0, "event": "events_missed", "node_id": None, "fields": {"count": None}, "id": None}
    past = Stream([f"data: {json.dumps(missed)}\n\n", *sent(event(7)).chunks])
    with standing_in({f"{PATH}?after=0&follow=false": past}) as registry:
        assert main(["registry", "event", "list", "--server", registry.api]) == 0
    assert [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        "n  claim of job j7 expired"
    ]


def test_what_happens_is_followed_until_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "FIRST_DELAY_SECONDS", 0.01)
    answers = iter([sent(event(1), event(2, None)), sent(event(3))])

    ctrl_c = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))

    def answer() -> Stream | Refusal:
        stream = next(answers, None)
        if stream is None and not ctrl_c.is_alive():
            ctrl_c.start()
        return stream or Refusal(503, "STARTING")

    with standing_in({PATH: answer}) as registry:
        assert main(["registry", "event", "follow", "--server", registry.api]) == 0
    said = capsys.readouterr()
    assert [line.split("  ", 1)[1] for line in said.out.splitlines()] == [
        "n  claim of job j1 expired",
        "-  claim of job j2 expired",
        "n  claim of job j3 expired",
    ]
    assert "the registry has gone" in said.err
    assert "the registry is back" in said.err


def test_a_nodes_events_go_on_behind_its_history(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "FIRST_DELAY_SECONDS", 0.01)
    answers = iter([sent(event(8), event(10))])

    def answer() -> Stream | Refusal:
        return next(answers, None) or Refusal(403, "FORBIDDEN", "enough")

    history = {"node_id": "n", "events": [event(6), event(7)]}
    with standing_in({f"{PATH}?node_id=n": answer, "GET /v1/nodes/n/events?limit=20": history}) as registry:
        assert main(["registry", "event", "follow", "n", "--json", "--server", registry.api]) == 6
        assert registry.headers[1]["last-event-id"] == "7"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == [6, 7, 8, 10]


def test_it_begins_behind_the_event_that_is_named() -> None:
    with standing_in({PATH: Refusal(403, "FORBIDDEN")}) as registry:
        assert main(["registry", "event", "follow", "--after", "41", "--server", registry.api]) == 6
        assert registry.headers[0]["last-event-id"] == "41"


def test_it_ends_without_an_event_when_its_reader_has_left() -> None:
    """`event follow | head -1` stayed until two more events had happened."""
    left, ended = threading.Event(), threading.Event()

    def quiet() -> Iterator[str]:
        yield from sent(event(1)).chunks
        left.wait(patience(20))
        yield ": still here\n\n"
        ended.wait(patience(20))

    with standing_in({PATH: lambda: Stream(quiet())}) as registry:
        words = (*COMMAND, "registry", "event", "follow", "--server", registry.api)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            assert "claim of job j1 expired" in program.stdout.readline()
            program.stdout.close()
            left.set()
            try:
                assert program.wait(timeout=patience(15)) == 0
            finally:
                ended.set()
                program.kill()


NOW = 1_000_000.0


def happened(name: str, **fields: object) -> RegistryEvent:
    return RegistryEvent(at=NOW - 130, event=name, node_id="node-7", fields={"node_id": "node-7", **fields})


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            happened(
                "node_status_changed", **{"from": "ready", "to": "degraded", "reason_code": "model_missing"}
            ),
            "ready → degraded: model_missing",
        ),
        (
            happened(
                "node_status_changed", **{"from": None, "to": "registering", "reason_code": "registered"}
            ),
            "new → registering: registered",
        ),
        (
            happened("claim_lost", job_id="j", reason_code="unregistered"),
            "claim of job j lost: unregistered",
        ),
        (happened("drain_requested", reason="", deadline_seconds=600), "drain requested"),
        (
            happened("events_missed", count=7),
            "7 events missed: they came faster than they were read",
        ),
        (
            happened("events_missed", count=1),
            "1 event missed: they came faster than they were read",
        ),
        (
            happened("node_checks_changed", failed="hook: the fan is stuck", count=1),
            "1 admission check failed: hook: the fan is stuck",
        ),
        (
            happened("node_checks_changed", failed="hook: a, pcie_link of GPU-0: b", count=2),
            "2 admission checks failed: hook: a, pcie_link of GPU-0: b",
        ),
        (happened("node_checks_changed", failed="none", count=0), "no admission check fails"),
        (
            happened("node_registered", address="10.0.0.7", gpu_count=1, session_epoch=3),
            "registered from 10.0.0.7, 1 GPU, session 3",
        ),
        (happened("events_missed", count=None), "events missed: they are too long ago"),
        (
            happened("token_purged", token_id="12ab", reason="its text was sent to no one"),
            "token 12ab removed: its text was sent to no one",
        ),
        (happened("something_new", a=1, b="x"), "something_new a=1 b=x"),
        (happened("claim_lost", of="another kind"), "claim_lost of=another kind"),
        (happened("node_status_changed", to="ready"), "node_status_changed to=ready"),
    ],
)
def test_each_event_is_one_readable_line(event: RegistryEvent, words: str) -> None:
    assert drawn(event) == [f"{clock(NOW - 130, NOW)}  node-7  {words}"]
    assert drawn(event, node=False) == [f"{clock(NOW - 130, NOW)}  {words}"]


def drawn(event: RegistryEvent, *, columns: int | None = None, node: bool = True) -> list[str]:
    return [plain_text(one) for one in event_lines(event, columns, now=NOW, node=node)]


def test_an_event_of_no_node_says_so() -> None:
    (words,) = drawn(RegistryEvent(at=NOW, event="registry_restored", fields={"nodes": 3}))
    assert "  -  the registry has started" in words


def test_on_a_terminal_a_long_event_goes_on_below_its_words_and_no_word_is_broken() -> None:
    event = happened("node_fault_reported", code="GPU_LOST", message="GPU 3 no longer answers, nor is listed")
    first, second = drawn(event, columns=60)
    assert first.endswith("  node-7         reports a fault: GPU_LOST: GPU 3 no")
    assert second == f"{' ' * 25}longer answers, nor is listed"


def test_a_days_old_event_has_its_date() -> None:
    assert re.fullmatch(r"\d\d:\d\d:\d\d", clock(NOW, NOW))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", clock(NOW - 90000, NOW))


def test_words_from_elsewhere_cannot_act_on_a_terminal() -> None:
    (said,) = drawn(happened("node_fault_reported", code="X", message="\x1b[2J\n"))
    assert said.isprintable()


@pytest.mark.parametrize("name", sorted(SENTENCES.keys() - {MISSED}))
def test_every_sentence_is_of_an_event_that_the_registry_writes_with_these_fields(name: str) -> None:
    sides = (Path(side.__path__[0]) for side in (registry, server))
    source = "".join(path.read_text() for side in sides for path in side.rglob("*.py"))
    assert f'"{name}"' in source
    fields = {field for _, field, _, _ in string.Formatter().parse(SENTENCES[name]) if field}
    assert all(f'"{field}"' in source or f"{field}=" in source for field in fields)


IN_THE_LOG_ALONE = {"health_check", "dispatch_failed", "dispatch_candidate_excluded"}


def test_every_event_that_the_fleet_writes_has_a_sentence() -> None:
    """Those of the shells (connections, requests, the program itself) are in the log alone."""
    written = (Path(__file__).parents[3] / "docs" / "reference" / "logs.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)`", written, re.MULTILINE))
    fleet = "".join(path.read_text() for path in Path(registry.__path__[0]).rglob("*.py"))
    named = {name for name in documented if f'"{name}"' in fleet}
    assert named - IN_THE_LOG_ALONE - {"node_status_changed"} <= set(SENTENCES)
