from pathlib import Path

import pytest

from gpu_agent.cli.configuration.setting_tables import documented
from gpu_agent.cli.documents.example_files import HALVES
from gpu_agent.cli.documents.manual_settings import page
from gpu_agent.cli.documents.roff import bold

DOCUMENT = (Path(__file__).parents[3] / "docs" / "settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("component", HALVES)
def test_every_key_stands_there_with_its_variable(component: str) -> None:
    written = page(DOCUMENT, component, date="2026-01-31", source="x")
    told = documented(DOCUMENT, component)
    for key in [*told.keys, *(key for table in told.tables for key in table.keys)]:
        assert f".TP\n{bold(key.key)}\n" in written
        assert bold(key.variable) in written


def test_a_required_key_and_one_without_a_default_are_told_apart() -> None:
    written = page(DOCUMENT, "agent", date="2026-01-31", source="x")
    assert "(URL; required; " in written
    assert "(path; no default; " in written
    assert "default \\fB5\\fR" in written


def test_a_table_has_a_section_of_its_own() -> None:
    written = page(DOCUMENT, "agent", date="2026-01-31", source="x")
    assert '\n.SH "KEYS in [public_jobs]"\n' in written
