from gpu_agent.registry.dispatch.exclusions import (
    EXAMPLES_PER_REASON,
    LAST_JOBS,
    WINDOW_SECONDS,
    WINDOWS,
    Excluded,
    ExclusionCounters,
    NoAvailableNode,
)
from gpu_agent.registry.quoting import LONGEST_QUOTE
from gpu_agent.wire.codes import ExclusionReason

FULL, GONE = ExclusionReason.CAPACITY_EXCEEDED, ExclusionReason.DISCONNECTED


def failure(job_id: str = "job-1", **nodes: ExclusionReason) -> NoAvailableNode:
    """A dispatch that found no node, with the reason of each."""
    shown: dict[ExclusionReason, tuple[Excluded, ...]] = {}
    for node_id, reason in nodes.items():
        shown[reason] = (*shown.get(reason, ()), Excluded(node_id, reason, "a place", "none"))
    return NoAvailableNode(job_id, {reason: len(fallen) for reason, fallen in shown.items()}, shown)


def test_failures_of_a_minute_are_counted_together() -> None:
    counted = ExclusionCounters()
    counted.count(failure("job-1", a=FULL, b=GONE), 120.0)
    counted.count(failure("job-2", a=FULL, c=FULL), 179.9)
    (window,) = counted.windows(179.9)
    assert (window.start, window.end, window.failed) == (120.0, 180.0, 2)
    assert window.counts == {FULL: 3, GONE: 1}
    assert [one.node_id for one in window.examples[FULL]] == ["a", "c"]
    assert window.last_jobs == ("job-1", "job-2")


def test_the_next_minute_is_counted_apart_and_one_without_failures_is_left_out() -> None:
    counted = ExclusionCounters()
    counted.count(failure(a=FULL), 10.0)
    counted.count(failure(a=GONE), 200.0)
    assert [(window.start, dict(window.counts)) for window in counted.windows(200.0)] == [
        (0.0, {FULL: 1}),
        (180.0, {GONE: 1}),
    ]


def test_an_hour_is_remembered_and_no_more() -> None:
    counted = ExclusionCounters()
    for minute in range(3 * WINDOWS):
        counted.count(failure(a=FULL), minute * WINDOW_SECONDS)
    now = (3 * WINDOWS - 1) * WINDOW_SECONDS
    assert len(counted.windows(now)) == WINDOWS
    assert len(counted.windows(now + WINDOW_SECONDS)) == WINDOWS - 1
    assert counted.windows(now + 2 * WINDOWS * WINDOW_SECONDS) == ()


def test_an_example_is_shown_once_as_it_was_last_and_no_more_than_a_few_are() -> None:
    counted = ExclusionCounters()
    many = {f"node-{number}": FULL for number in range(2 * EXAMPLES_PER_REASON)}
    counted.count(failure("job-1", **many), 0.0)
    again = NoAvailableNode("job-2", {FULL: 1}, {FULL: (Excluded("node-0", FULL, "a place", "4 of 4"),)})
    counted.count(again, 1.0)
    (window,) = counted.windows(1.0)
    assert [one.node_id for one in window.examples[FULL]] == list(many)[:EXAMPLES_PER_REASON]
    assert window.examples[FULL][0].have == "4 of 4"


def test_only_the_last_jobs_are_named_and_none_at_length() -> None:
    counted = ExclusionCounters()
    for number in range(100):
        counted.count(failure(f"{number}-{'x' * 10_000}"), 0.0)
    (window,) = counted.windows(0.0)
    assert [job_id.split("-")[0] for job_id in window.last_jobs] == [str(n) for n in range(100)][-LAST_JOBS:]
    assert max(map(len, window.last_jobs)) == LONGEST_QUOTE


def test_a_window_that_is_over_is_returned_once() -> None:
    counted = ExclusionCounters()
    counted.count(failure(a=FULL), 130.0)
    assert counted.finished(179.0) == ()
    counted.count(failure(a=FULL), 180.0)
    assert [window.start for window in counted.finished(200.0)] == [120.0]
    assert counted.finished(239.9) == ()
    assert [window.start for window in counted.finished(240.0)] == [180.0]
    assert counted.finished(1000.0) == ()
