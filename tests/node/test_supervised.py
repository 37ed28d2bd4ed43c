import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.node import supervised
from gpu_agent.node.pulse import Signs
from gpu_agent.node.supervised import attend, standing_of
from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.story import State
from gpu_agent.session.view import SessionView
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeStatusMessage
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import until

VIEW = SessionView(
    state=State.BACKING_OFF,
    node_id="node-1",
    verdict=None,
    next_attempt_at=1.0,
    last_refusal="connection refused",
    sequence=0,
    interval_seconds=None,
)


def _verdict(status: NodeStatus, reason: str) -> NodeStatusMessage:
    return NodeStatusMessage(node_id="node-1", status=status, reason=reason)


@asynccontextmanager
async def _attended(
    folder: Path, signs: Callable[[], Signs], *, watchdog: bool = True
) -> AsyncIterator[ServiceManager]:
    with service_manager(folder) as manager:
        environ = {**manager.environment, **({"WATCHDOG_USEC": "40000"} if watchdog else {})}
        async with Tasks() as tasks:
            tasks.start("supervised", attend(Systemd(environ), lambda: VIEW, signs))
            yield manager
            tasks.end()


def _well() -> Signs:
    now = asyncio.get_running_loop().time()
    return Signs(busy_since=None, deadline=now + 3600, probed_at=now, probe_patience_seconds=25)


def _stuck() -> Signs:
    return replace(_well(), busy_since=0.0, probed_at=0.0)


class _Agent:
    """An agent whose health changes."""

    def __init__(self, look: Callable[[], Signs]) -> None:
        self.look = look

    def signs(self) -> Signs:
        return self.look()


async def test_a_registry_that_is_away_feeds_the_watchdog_on(tmp_path: Path) -> None:
    async with _attended(tmp_path, _well) as manager:
        await until(lambda: manager.heard_so_far().count("WATCHDOG=1") >= 3)
    assert manager.heard[0] == "STATUS=not connected, will try again: connection refused"


async def test_an_agent_that_stands_still_feeds_nothing_and_says_what_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = _Agent(_well)
    async with _attended(tmp_path, agent.signs) as manager:
        await until(lambda: "WATCHDOG=1" in manager.heard_so_far())
        agent.look = _stuck
        await until(lambda: "agent_stands_still" in caplog.messages)
        fed = manager.heard_so_far().count("WATCHDOG=1")
        await asyncio.sleep(0.05)
        assert manager.heard_so_far().count("WATCHDOG=1") == fed
    assert caplog.messages.count("agent_stands_still") == 1


async def test_what_goes_on_again_feeds_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    agent = _Agent(_stuck)
    async with _attended(tmp_path, agent.signs) as manager:
        await until(lambda: "agent_stands_still" in caplog.messages)
        assert "WATCHDOG=1" not in manager.heard_so_far()
        agent.look = _well
        await until(lambda: "WATCHDOG=1" in manager.heard_so_far())
    assert caplog.messages == ["agent_stands_still", "agent_gets_on_again"]


async def test_an_agent_that_drains_asks_for_time_as_long_as_it_gets_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "EXTENSION_SECONDS", 0.03)
    agent = _Agent(_well)
    with service_manager(tmp_path) as manager:
        async with Tasks() as tasks:
            staying = tasks.start("stay", supervised.stay(Systemd(manager.environment), agent.signs))
            await until(lambda: manager.heard_so_far().count("EXTEND_TIMEOUT_USEC=30000") >= 3)
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
            replace(VIEW, state=State.REGISTERED, verdict=_verdict(NodeStatus.READY, "healthy")),
            "ready as node-1: healthy",
        ),
        (
            replace(VIEW, state=State.LEAVING, verdict=_verdict(NodeStatus.DRAINING, "1 job runs")),
            "draining as node-1: 1 job runs",
        ),
        (replace(VIEW, state=State.DRAINED), "drained, as its owner asked"),
        (replace(VIEW, state=State.STOPPED), "stopped"),
    ],
)
def test_where_a_session_stands_is_one_line_in_the_registrys_words(view: SessionView, line: str) -> None:
    assert standing_of(view) == line
