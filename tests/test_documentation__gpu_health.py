"""`docs/reference/gpu-health.md` says what the program holds of a GPU."""

import re

from gpu_agent.probe.health.history import QUIET_SECONDS, SLOWDOWN_SECONDS
from gpu_agent.probe.health.reasons import REASONS, Clears
from gpu_agent.probe.health.xids import XIDS
from gpu_agent.wire.inventory import Health
from tests.documents import page, quoted, rows

AT_ONCE = "at once"
"""How the page calls the end of what only meant that nothing was known."""


def test_every_reason_of_a_gpus_health_is_explained_as_the_table_has_it() -> None:
    listed = {
        quoted(row[0])[0]: (quoted(row[1])[0], row[3], row[4]) for row in rows("gpu-health.md", "The reasons")
    }
    assert listed == {
        code: (
            entry.health.value,
            entry.action,
            AT_ONCE if entry.health is Health.UNKNOWN else entry.clears.value,
        )
        for code, entry in REASONS.items()
    }


def test_every_way_in_which_a_reason_ends_is_explained() -> None:
    ends = {row[0]: row[1] for row in rows("gpu-health.md", "When a reason ends")}
    assert set(ends) == {*(clears.value for clears in Clears), AT_ONCE}
    assert all(
        f"{QUIET_SECONDS / 60:g} minutes" in ends[clears.value] for clears in (Clears.PROGRAMS, Clears.QUIET)
    )


def test_the_reasons_that_need_time_say_how_much() -> None:
    for row in rows("gpu-health.md", "The reasons"):
        if "slowdown" in row[0]:
            assert f"over {SLOWDOWN_SECONDS:g} s" in row[2]


def test_the_xids_that_never_count_are_named() -> None:
    written = page("gpu-health.md").split("\n## Xids\n")[1]
    programs, rest = written.split("are what a program")
    announcements = rest.split("never change a GPU's health.")[1].split(" announce ")[0]
    named = [int(number) for number in re.findall(r"\b\d+\b", programs + announcements)]
    assert sorted(named) == sorted(number for number, xid in XIDS.items() if xid.health is None)
