import re
import string
from pathlib import Path

import pytest

from gpu_agent import registry, server
from gpu_agent.cli.lines import plain
from gpu_agent.cli.nodes.event_words import SENTENCES, clock, event_line, event_line_ago

NOW = 1_000_000.0


def event(name: str, **fields: object) -> dict[str, object]:
    return {"at": NOW - 130, "event": name, "node_id": "node-7", "fields": {"node_id": "node-7", **fields}}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            event(
                "node_status_changed", **{"from": "ready", "to": "degraded", "reason_code": "model_missing"}
            ),
            "ready → degraded: model_missing",
        ),
        (
            event("node_status_changed", **{"from": None, "to": "registering", "reason_code": "registered"}),
            "new → registering: registered",
        ),
        (event("claim_lost", job_id="j", reason_code="unregistered"), "claim of job j lost: unregistered"),
        (event("drain_wished", reason="", deadline_seconds=600), "drain asked for"),
        (event("events_missed", count=7), "7 events missed: they came faster than they were read"),
        (event("events_missed", count=None), "events missed: they are too long ago"),
        (event("something_new", a=1, b="x"), "something_new a=1 b=x"),
        (event("claim_lost", of="another kind"), "claim_lost of=another kind"),
        (event("node_status_changed", to="ready"), "node_status_changed to=ready"),
    ],
)
def test_each_event_is_one_readable_line(told: dict[str, object], words: str) -> None:
    assert plain(event_line(told, now=NOW)) == f"{clock(NOW - 130, NOW)}  node-7  {words}"
    assert plain(event_line(told, now=NOW, node=False)) == f"{clock(NOW - 130, NOW)}  {words}"
    assert plain(event_line_ago(told, now=NOW)) == f"  2 min ago  {words}"


def test_an_event_of_no_node_says_so() -> None:
    assert "  -  the registry has started" in plain(
        event_line(
            {"at": NOW, "event": "registry_restored", "node_id": None, "fields": {"nodes": 3}}, now=NOW
        )
    )


def test_a_days_old_event_has_its_date() -> None:
    assert re.fullmatch(r"\d\d:\d\d:\d\d", clock(NOW, NOW))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", clock(NOW - 90000, NOW))


def test_words_from_elsewhere_cannot_act_on_a_terminal() -> None:
    said = plain(event_line(event("node_fault_reported", code="X", message="\x1b[2J\n"), now=NOW))
    assert said.isprintable()


@pytest.mark.parametrize("name", SENTENCES)
def test_every_sentence_is_of_an_event_that_the_registry_writes_with_these_fields(name: str) -> None:
    sides = (Path(side.__path__[0]) for side in (registry, server))
    source = "".join(path.read_text() for side in sides for path in side.rglob("*.py"))
    assert f'"{name}"' in source
    fields = {field for _, field, _, _ in string.Formatter().parse(SENTENCES[name]) if field}
    assert all(f'"{field}"' in source or f"{field}=" in source for field in fields)


IN_THE_LOG_ALONE = {"health_check", "dispatch_failed", "dispatch_candidate_excluded"}


def test_every_event_that_the_fleet_tells_has_words() -> None:
    """Those of the shells (connections, requests, the program itself) stand in the log alone."""
    written = (Path(__file__).parents[3] / "docs" / "logs.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)`", written, re.MULTILINE))
    fleet = "".join(path.read_text() for path in Path(registry.__path__[0]).rglob("*.py"))
    told = {name for name in documented if f'"{name}"' in fleet}
    assert told - IN_THE_LOG_ALONE - {"node_status_changed"} <= set(SENTENCES)
