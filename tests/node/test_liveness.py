import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.node import liveness
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
from tests.node.control_harness import snapshot
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import until

NOW = 1000.0
LATE = MAX_EVENT_SECONDS + 1
WELL = Progress(busy_since=None, deadline=NOW + 5, probed_at=NOW - 4, max_probe_seconds=25)


def test_an_agent_that_waits_for_its_deadline_has_not_stalled() -> None:
    assert find_stall(WELL, NOW) is None


def test_a_session_that_backs_off_is_no_stall() -> None:
    assert find_stall(replace(WELL, deadline=NOW + 3600), NOW) is None
    assert find_stall(replace(WELL, deadline=None), NOW) is None


def test_an_event_that_does_not_end_is_a_stall_with_its_age() -> None:
    stuck = replace(WELL, busy_since=NOW - LATE)
    assert find_stall(stuck, NOW) == f"one event has been under way for {LATE:.0f} s"
    assert find_stall(replace(WELL, busy_since=NOW - MAX_EVENT_SECONDS), NOW) is None


def test_a_missed_deadline_is_a_stall() -> None:
    missed = replace(WELL, deadline=NOW - LATE)
    assert find_stall(missed, NOW) == f"the session's deadline passed {LATE:.0f} s ago"
    assert find_stall(replace(WELL, deadline=NOW - MAX_EVENT_SECONDS), NOW) is None


def test_a_deadline_may_pass_while_an_event_is_handled() -> None:
    assert find_stall(replace(WELL, deadline=NOW - LATE, busy_since=NOW - 1), NOW) is None


def test_a_probe_loop_that_hangs_is_a_stall() -> None:
    age = WELL.max_probe_seconds + PROBE_SLACK_SECONDS
    assert find_stall(replace(WELL, probed_at=NOW - age), NOW) is None
    hung = replace(WELL, probed_at=NOW - age - 1)
    assert find_stall(hung, NOW) == f"no probe has begun for {age + 1:.0f} s"


@pytest.mark.parametrize("name", ["busy_since", "deadline", "probed_at"])
@given(later=st.floats(0, 1e6))
def test_a_stall_does_not_end_by_waiting(name: str, later: float) -> None:
    stalled = replace(WELL, **{name: NOW - 1000})
    assert find_stall(stalled, NOW) is not None
    assert find_stall(stalled, NOW + later) is not None


SESSION = SessionSnapshot(
    state=State.BACKING_OFF,
    address="ws://r",
    node_id="node-1",
    registry_status=None,
    next_attempt_at=1.0,
    last_refusal="connection refused",
    sequence=0,
    interval_seconds=None,
)

AWAY = snapshot(state=State.BACKING_OFF, last_refusal="connection refused")


def _status(status: NodeStatus, reason: str) -> NodeStatusMessage:
    return NodeStatusMessage(node_id="node-1", status=status, reason=reason)


@asynccontextmanager
async def _reported(
    folder: Path, progress: Callable[[], Progress], *, watchdog: bool = True
) -> AsyncIterator[ServiceManager]:
    with service_manager(folder) as manager:
        environ = {**manager.environment, **({"WATCHDOG_USEC": "40000"} if watchdog else {})}
        async with Tasks() as tasks:
            tasks.start("liveness", report_liveness(SystemdNotifier(environ), lambda: AWAY, progress))
            yield manager
            tasks.end()


def _working() -> Progress:
    now = asyncio.get_running_loop().time()
    return Progress(busy_since=None, deadline=now + 3600, probed_at=now, max_probe_seconds=25)


def _stalled() -> Progress:
    return replace(_working(), busy_since=0.0, probed_at=0.0)


class _Agent:
    """An agent that stalls and recovers."""

    def __init__(self, current: Callable[[], Progress]) -> None:
        self.current = current

    def progress(self) -> Progress:
        return self.current()


async def test_a_registry_that_is_away_still_feeds_the_watchdog(tmp_path: Path) -> None:
    async with _reported(tmp_path, _working) as manager:
        await until(lambda: manager.received_so_far().count("WATCHDOG=1") >= 3)
    assert manager.received[0] == "STATUS=not connected, will try again: connection refused"


async def test_a_stalled_agent_does_not_feed_the_watchdog_and_logs_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = _Agent(_working)
    async with _reported(tmp_path, agent.progress) as manager:
        await until(lambda: "WATCHDOG=1" in manager.received_so_far())
        agent.current = _stalled
        await until(lambda: "agent_stalled" in caplog.messages)
        fed = manager.received_so_far().count("WATCHDOG=1")
        await asyncio.sleep(0.05)
        assert manager.received_so_far().count("WATCHDOG=1") == fed
    assert caplog.messages.count("agent_stalled") == 1


async def test_a_recovered_agent_feeds_the_watchdog_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    agent = _Agent(_stalled)
    async with _reported(tmp_path, agent.progress) as manager:
        await until(lambda: "agent_stalled" in caplog.messages)
        assert "WATCHDOG=1" not in manager.received_so_far()
        agent.current = _working
        await until(lambda: "WATCHDOG=1" in manager.received_so_far())
    assert caplog.messages == ["agent_stalled", "agent_recovered"]


async def test_a_draining_agent_extends_its_stop_until_it_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "EXTENSION_SECONDS", 0.03)
    agent = _Agent(_working)
    with service_manager(tmp_path) as manager:
        async with Tasks() as tasks:
            extending = tasks.start(
                "extend-stop", liveness.extend_stop(SystemdNotifier(manager.environment), agent.progress)
            )
            await until(lambda: manager.received_so_far().count("EXTEND_TIMEOUT_USEC=30000") >= 3)
            agent.current = _stalled
            await extending


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (replace(SESSION, state=State.IDLE), "starting"),
        (replace(SESSION, state=State.CONNECTING), "connecting"),
        (replace(SESSION, state=State.AWAITING_ACK), "registering"),
        (SESSION, "not connected, will try again: connection refused"),
        (replace(SESSION, last_refusal=None), "connecting"),
        (
            replace(SESSION, state=State.WAITING_GPU, last_refusal="no usable GPU to declare"),
            "waiting for a GPU: no usable GPU to declare",
        ),
        (
            replace(SESSION, state=State.YIELDED, last_refusal="superseded"),
            "left to another session until it is restarted: superseded",
        ),
        (replace(SESSION, state=State.REGISTERED), "registered as node-1"),
        (
            replace(SESSION, state=State.REGISTERED, registry_status=_status(NodeStatus.READY, "healthy")),
            "ready as node-1: healthy",
        ),
        (
            replace(SESSION, state=State.LEAVING, registry_status=_status(NodeStatus.DRAINING, "1 job runs")),
            "draining as node-1: 1 job runs",
        ),
        (replace(SESSION, state=State.DRAINED), "drained, as its owner asked"),
        (replace(SESSION, state=State.STOPPED), "stopped"),
    ],
)
def test_the_status_line_has_the_registrys_reason(view: SessionSnapshot, line: str) -> None:
    assert status_line(view) == line
