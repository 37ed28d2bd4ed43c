import time

import pytest

from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.exclusions import Exclusions
from gpu_agent.registry.dispatch.verdict import Excluded, Exclusion, NoAvailableNode
from gpu_agent.registry.job import Claim, Job
from gpu_agent.server import dispatch_views
from gpu_agent.server.clock import Clock
from gpu_agent.server.dispatch_views import ExampleView
from gpu_agent.server.service import RegistryService
from tests.server.harness import Node

CLOCK = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)
HELD = Claim(
    job_id="job-1",
    node_id="node-1",
    gpu_uuids=("GPU-1", "#1"),
    endpoint="http://10.0.0.1",
    granted_at=90.0,
    expires_at=150.0,
    memory_mb=2048,
    affinity_key="talk-7",
)


def test_a_selection_says_how_good_the_place_is_and_whether_it_is_held() -> None:
    chosen = dispatch_views.selection("job-2", Choice("node-2", ("GPU-2",), None, 900))
    assert (chosen.job_id, chosen.node_id, chosen.score, chosen.held) == ("job-2", "node-2", 900, False)
    held = dispatch_views.selection("job-1", HELD)
    assert (held.node_id, held.gpu_uuids, held.score, held.held) == ("node-1", ("GPU-1",), None, True)


def test_a_minute_of_failures_is_shown_by_names() -> None:
    counted, reason = Exclusions(), Exclusion.CORDONED
    examples = {reason: (Excluded("node-1", reason, "none", "fans"),)}
    counted.failed(NoAvailableNode("job-1", {reason: 3}, examples), 70.0)
    (window,) = counted.windows(100.0)
    shown = dispatch_views.exclusions(window, CLOCK)
    assert (shown.window_start, shown.window_end, shown.failed) == (999_960.0, 1_000_020.0, 1)
    assert (shown.counts, shown.last_jobs) == ({"cordoned": 3}, ("job-1",))
    assert shown.examples == {"cordoned": (ExampleView(node_id="node-1", need="none", have="fans"),)}


async def test_failed_placements_are_counted_by_the_minute(service: RegistryService, ready: Node) -> None:
    await service.claim(Job(job_id="job-1", required_models=("other",)))
    (minute,) = service.exclusions()
    assert (minute.failed, minute.counts, minute.last_jobs) == (1, {"model_not_available": 1}, ("job-1",))
    assert [one.node_id for one in minute.examples["model_not_available"]] == [ready.node_id]
    assert abs(minute.window_start - time.time()) < 61
    assert minute.window_end - minute.window_start == pytest.approx(60.0)
