import pytest

from gpu_agent.cli.output.exclusions import (
    acceptance_line,
    counts_in_words,
    eligibility_table,
    reasons_table,
)
from gpu_agent.cli.output.text import plain_text
from gpu_agent.wire.api import ExcludedNode, ExplanationView, NodeExclusionView, NodeExplanation

REASON = NodeExclusionView(
    reason="capacity_exceeded",
    refuses="every job",
    need="a free slot",
    have="4 of 4 occupied",
    clears_when="a job ends",
)


def test_each_reason_says_what_is_there_and_what_ends_it() -> None:
    assert [plain_text(one) for one in reasons_table([REASON], None)] == [
        "NOW REFUSED  REASON             WHY",
        "every job    capacity_exceeded  now: 4 of 4 occupied; clears when: a job ends",
    ]


@pytest.mark.parametrize(
    ("every", "reasons", "sentence"),
    [
        (False, [], "n takes every job that fits it"),
        (False, [REASON], "n takes jobs, but not all of them"),
        (True, [REASON], "n takes no job now"),
    ],
)
def test_the_line_says_which_jobs_are_taken(
    every: bool,  # noqa: FBT001 - a case of the table
    reasons: list[NodeExclusionView],
    sentence: str,
) -> None:
    answer = NodeExplanation(
        node_id="n", refuses_every_job=every, exclusions=tuple(reasons), limits=(), model=None
    )
    assert plain_text(acceptance_line("n", answer)) == sentence


EXPLANATION = ExplanationView(
    job_id="j",
    eligible=("node-1",),
    excluded=(ExcludedNode(node_id="node-2", reason="gpu_unavailable", need="2 GPUs", have="1 usable GPU"),),
    counts={"gpu_unavailable": 1},
)


def test_eligible_nodes_come_first_and_the_others_say_why_not() -> None:
    assert [plain_text(one) for one in eligibility_table(EXPLANATION, None)] == [
        "NODE    RESULT           WHY",
        "node-1  eligible",
        "node-2  gpu_unavailable  needs 2 GPUs; has 1 usable GPU",
    ]


def test_reasons_are_counted() -> None:
    assert counts_in_words({"cordoned": 2, "disconnected": 1}) == "2 cordoned, 1 disconnected"
