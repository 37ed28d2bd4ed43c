from dataclasses import fields
from pathlib import Path

import pytest

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.threshold_words import MEANINGS, unit_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_threshold_has_a_meaning_and_no_other_name_has() -> None:
    assert set(MEANINGS) == {one.name for one in fields(Thresholds)}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("claim_ttl_seconds", "seconds"),
        ("max_cpu_percent", "percent"),
        ("failure_window", "beats"),
        ("default_max_concurrent_jobs", "jobs"),
        ("required_models", "models"),
        ("flap_limit", "exits"),
        ("max_beats_per_second", "beats per second"),
    ],
)
def test_a_threshold_has_its_unit(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_the_document_uses_the_same_words() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## The registry\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if "`" in row]
    written = {row[0].strip("`"): row[4] for row in rows if row}
    assert {name: written[name] for name in MEANINGS} == MEANINGS
