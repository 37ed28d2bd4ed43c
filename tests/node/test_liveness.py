import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.node import liveness as supervised
from gpu_agent.node.liveness import (
    MAX_EVENT_SECONDS,
    PROBE_SLACK_SECONDS,
    Progress,
    find_stall,
    report_liveness,
    status_line,
)
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.types import SessionSnapshot, State
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeStatusMessage
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import until

NOW = 1000.0
LATE = MAX_EVENT_SECONDS + 1
WELL = Progress(busy_since=None, deadline=NOW + 5, probed_at=NOW - 4, max_probe_seconds=25)


def test_an_agent_that_waits_for_its_deadline_is_well() -> None:
    assert find_stall(WELL, NOW) is None


def test_a_registry_that_is_away_makes_nobody_ill_however_long_the_session_backs_off() -> None:
    assert find_stall(replace(WELL, deadline=NOW + 3600), NOW) is None
    assert find_stall(replace(WELL, deadline=None), NOW) is None


def test_an_event_that_does_not_end_is_told_with_its_age() -> None:
    stuck = replace(WELL, busy_since=NOW - LATE)
    assert find_stall(stuck, NOW) == f"one event has been under way for {LATE:.0f} s"
    assert find_stall(replace(WELL, busy_since=NOW - MAX_EVENT_SECONDS), NOW) is None


def test_a_deadline_that_passed_and_woke_nobody_is_told() -> None:
    missed = replace(WELL, deadline=NOW - LATE)
    assert find_stall(missed, NOW) == f"the session's deadline passed {LATE:.0f} s ago"
    assert find_stall(replace(WELL, deadline=NOW - MAX_EVENT_SECONDS), NOW) is None


def test_a_deadline_that_passes_while_an_event_is_carried_out_has_that_event_s_time() -> None:
    assert find_stall(replace(WELL, deadline=NOW - LATE, busy_since=NOW - 1), NOW) is None


def test_a_probe_loop_that_hangs_is_a_stall() -> None:
    age = WELL.max_probe_seconds + PROBE_SLACK_SECONDS
    assert find_stall(replace(WELL, probed_at=NOW - age), NOW) is None
    standing = replace(WELL, probed_at=NOW - age - 1)
    assert find_stall(standing, NOW) == f"no probe has begun for {age + 1:.0f} s"


@pytest.mark.parametrize("name", ["busy_since", "deadline", "probed_at"])
@given(later=st.floats(0, 1e6))
def test_whoever_is_ill_does_not_get_well_by_waiting(name: str, later: float) -> None:
    ill = replace(WELL, **{name: NOW - 1000})
    assert find_stall(ill, NOW) is not None
    assert find_stall(ill, NOW + later) is not None


VIEW = SessionSnapshot(
    state=State.BACKING_OFF,
    node_id="node-1",
    registry_status=None,
    next_attempt_at=1.0,
    last_refusal="connection refused",
    sequence=0,
    interval_seconds=None,
)


def _verdict(status: NodeStatus, reason: str) -> NodeStatusMessage:
    return NodeStatusMessage(node_id="node-1", status=status, reason=reason)


@asynccontextmanager
async def _attended(
    folder: Path, signs: Callable[[], Progress], *, watchdog: bool = True
) -> AsyncIterator[ServiceManager]:
    with service_manager(folder) as manager:
        environ = {**manager.environment, **({"WATCHDOG_USEC": "40000"} if watchdog else {})}
        async with Tasks() as tasks:
            tasks.start("supervised", report_liveness(SystemdNotifier(environ), lambda: VIEW, signs))
            yield manager
            tasks.end()


def _well() -> Progress:
    now = asyncio.get_running_loop().time()
    return Progress(busy_since=None, deadline=now + 3600, probed_at=now, max_probe_seconds=25)


def _stuck() -> Progress:
    return replace(_well(), busy_since=0.0, probed_at=0.0)


class _Agent:
    """An agent whose health changes."""

    def __init__(self, look: Callable[[], Progress]) -> None:
        self.look = look

    def signs(self) -> Progress:
        return self.look()


async def test_a_registry_that_is_away_feeds_the_watchdog_on(tmp_path: Path) -> None:
    async with _attended(tmp_path, _well) as manager:
        await until(lambda: manager.received_so_far().count("WATCHDOG=1") >= 3)
    assert manager.received[0] == "STATUS=not connected, will try again: connection refused"


async def test_an_agent_that_stands_still_feeds_nothing_and_says_what_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = _Agent(_well)
    async with _attended(tmp_path, agent.signs) as manager:
        await until(lambda: "WATCHDOG=1" in manager.received_so_far())
        agent.look = _stuck
        await until(lambda: "agent_stalled" in caplog.messages)
        fed = manager.received_so_far().count("WATCHDOG=1")
        await asyncio.sleep(0.05)
        assert manager.received_so_far().count("WATCHDOG=1") == fed
    assert caplog.messages.count("agent_stalled") == 1


async def test_what_goes_on_again_feeds_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    agent = _Agent(_stuck)
    async with _attended(tmp_path, agent.signs) as manager:
        await until(lambda: "agent_stalled" in caplog.messages)
        assert "WATCHDOG=1" not in manager.received_so_far()
        agent.look = _well
        await until(lambda: "WATCHDOG=1" in manager.received_so_far())
    assert caplog.messages == ["agent_stalled", "agent_recovered"]


async def test_an_agent_that_drains_asks_for_time_as_long_as_it_gets_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "EXTENSION_SECONDS", 0.03)
    agent = _Agent(_well)
    with service_manager(tmp_path) as manager:
        async with Tasks() as tasks:
            staying = tasks.start(
                "stay", supervised.extend_stop(SystemdNotifier(manager.environment), agent.signs)
            )
            await until(lambda: manager.received_so_far().count("EXTEND_TIMEOUT_USEC=30000") >= 3)
            agent.look = _stuck
            await staying


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (replace(VIEW, state=State.IDLE), "starting"),
        (replace(VIEW, state=State.CONNECTING), "connecting"),
        (replace(VIEW, state=State.AWAITING_ACK), "registering"),
        (VIEW, "not connected, will try again: connection refused"),
        (replace(VIEW, last_refusal=None), "not connected, will try again"),
        (
            replace(VIEW, state=State.WAITING_GPU, last_refusal="no usable GPU to declare"),
            "waiting for a GPU: no usable GPU to declare",
        ),
        (
            replace(VIEW, state=State.YIELDED, last_refusal="superseded"),
            "left to another session until it is restarted: superseded",
        ),
        (replace(VIEW, state=State.REGISTERED), "registered as node-1"),
        (
            replace(VIEW, state=State.REGISTERED, registry_status=_verdict(NodeStatus.READY, "healthy")),
            "ready as node-1: healthy",
        ),
        (
            replace(VIEW, state=State.LEAVING, registry_status=_verdict(NodeStatus.DRAINING, "1 job runs")),
            "draining as node-1: 1 job runs",
        ),
        (replace(VIEW, state=State.DRAINED), "drained, as its owner asked"),
        (replace(VIEW, state=State.STOPPED), "stopped"),
    ],
)
def test_where_a_session_stands_is_one_line_in_the_registrys_words(view: SessionSnapshot, line: str) -> None:
    assert status_line(view) == line
