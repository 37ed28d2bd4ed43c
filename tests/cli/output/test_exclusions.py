import pytest

from gpu_agent.cli.output.exclusions import (
    acceptance_line,
    counts_in_words,
    eligibility_table,
    exclusion_table,
)
from gpu_agent.cli.output.text import plain_text

OBJECTION = {
    "reason": "capacity_exceeded",
    "refuses": "every job",
    "need": "a free place",
    "have": "4 of 4 taken",
    "clears_when": "a job ends",
}


def test_each_objection_says_what_is_needed_what_is_there_and_what_ends_it() -> None:
    assert [plain_text(one) for one in exclusion_table("NOW REFUSED", [OBJECTION], None)] == [
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
    assert plain_text(acceptance_line("n", {"refuses_every_job": every, "objections": objections})) == verdict


EXCLUDED = {"node_id": "node-2", "reason": "gpu_unavailable", "need": "2 GPUs", "have": "1 usable GPU"}


def test_the_able_come_first_and_the_others_say_why_not() -> None:
    assert [plain_text(one) for one in eligibility_table(["node-1"], [EXCLUDED], None)] == [
        "NODE    VERDICT          WHY",
        "node-1  able",
        "node-2  gpu_unavailable  needs 2 GPUs; has 1 usable GPU",
    ]


def test_reasons_are_counted() -> None:
    assert counts_in_words({"cordoned": 2, "disconnected": 1}) == "2 cordoned, 1 disconnected"
