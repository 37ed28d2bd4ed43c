import pytest

from gpu_agent.cli.lines import plain
from gpu_agent.cli.nodes.objection_sheet import objection_lines, taken

OBJECTION = {
    "reason": "capacity_exceeded",
    "refuses": "every job",
    "need": "a free place",
    "have": "4 of 4 taken",
    "clears_when": "a job ends",
}


def test_each_objection_says_what_is_needed_what_is_there_and_what_ends_it() -> None:
    assert [plain(one) for one in objection_lines("NOW REFUSED", [OBJECTION], None)] == [
        "NOW REFUSED  REASON             WHY",
        "every job    capacity_exceeded  needs a free place; has 4 of 4 taken; until a job ends",
    ]


@pytest.mark.parametrize(
    ("every", "objections", "verdict"),
    [
        (False, [], "n takes every job that fits it"),
        (False, [OBJECTION], "n takes jobs, but not all of them"),
        (True, [OBJECTION], "n takes no job now"),
    ],
)
def test_the_verdict_says_which_jobs_are_taken(
    every: bool,  # noqa: FBT001 - a case of the table
    objections: list[object],
    verdict: str,
) -> None:
    assert plain(taken("n", {"refuses_every_job": every, "objections": objections})) == verdict
