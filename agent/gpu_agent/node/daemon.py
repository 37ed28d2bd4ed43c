"""The agent as a program: its state directory, its probe child, its signals, and what its end means.

Decides nothing of the session: `agent` lives that. It runs once in a process.
"""

import asyncio
import os
import platform
import signal
from collections.abc import Callable
from enum import IntEnum

from gpu_agent.node.agent import Agent
from gpu_agent.node.collecting import collectors_of
from gpu_agent.node.disk import load
from gpu_agent.node.gpus import opened_gpus
from gpu_agent.node.identity import IdentityError, IdentityFile, default_state_dir, hold
from gpu_agent.node.reloading import AT_ONCE
from gpu_agent.node.settings import AgentSettings
from gpu_agent.node.socket.server import LocalSocket
from gpu_agent.node.socket_door import Door, opened
from gpu_agent.node.supervised import attend, stay
from gpu_agent.runtime.logs import EventLog, configure
from gpu_agent.runtime.reloading import Reloads
from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.signals import RELOADING, STOPPING, delivered, hang_up_ends
from gpu_agent.runtime.strays import tell
from gpu_agent.runtime.tasks import TaskCrashedError, Tasks
from gpu_agent.session.actions import Exit
from gpu_agent.version import __version__

_LOG = EventLog("node")


class End(IntEnum):
    """How a run ends, as exit codes."""

    LEFT = 0
    """Asked to stop, and did."""
    CRASHED = 1
    """A fault of ours; the log has it."""
    UNUSABLE_STATE = 4
    """The state directory cannot be used, or another agent uses it."""
    REFUSED = 6
    """The registry wants nothing of this node; a person must act."""


def run(settings: AgentSettings, read: Callable[[], AgentSettings]) -> End:
    """Run the agent in this process until it is ended; `read` gives the settings anew."""
    configure(settings.log_level)
    tell(AgentSettings, os.environ)
    state_dir = settings.state_dir or default_state_dir()
    try:
        with hold(state_dir) as identity, opened(settings, state_dir) as door:
            load(identity)
            return asyncio.run(_run(settings, identity, door, read=read))
    except IdentityError as error:
        _LOG.error("state_directory_unusable", problem=str(error))
        return End.UNUSABLE_STATE
    except TaskCrashedError:
        return End.CRASHED


async def _run(
    settings: AgentSettings, identity: IdentityFile, door: Door | None, *, read: Callable[[], AgentSettings]
) -> End:
    state_dir = identity.folder
    _LOG.info(
        "agent_started",
        version=__version__,
        registry=settings.registry_url,
        state_dir=str(state_dir),
        node_id=identity.identity.node_id,
        simulated=settings.simulate,
    )
    # Agents that pretend side by side have GPUs of their own; else they are those `probe` shows.
    apart = "" if settings.state_dir is None else f"\n{state_dir}"
    reading = opened_gpus(
        simulate=settings.simulate,
        seed=f"{platform.node()}{apart}",
        deadline_seconds=settings.deadline_seconds,
        keep_open=settings.poll_gpus,
    )
    async with reading as read_gpus, Tasks() as tasks:
        agent = Agent(settings, identity, read_gpus, collecting=collectors_of(settings))
        if door is not None:
            tasks.start("local-socket", LocalSocket(agent.front, door.house).serve(door.listener, tasks))
        ending = await _live(agent, tasks, read)
        tasks.end()
    _LOG.info("agent_ended", reason=ending.reason, failed=ending.failed)
    return End.REFUSED if ending.failed else End.LEFT


async def _live(agent: Agent, tasks: Tasks, read: Callable[[], AgentSettings]) -> Exit:
    """Let the agent run, hear signals meanwhile, and keep systemd informed."""
    systemd = Systemd(os.environ)
    reloads = Reloads(agent.settings, read=read, at_once=AT_ONCE, take_over=agent.take_over, systemd=systemd)

    def stop(number: signal.Signals) -> None:
        drain_seconds = agent.settings.drain_on_stop_seconds
        _LOG.info("agent_stopping", signal=number.name, drain_seconds=drain_seconds)
        systemd.stopping()
        tasks.start("signal", agent.stop(f"the agent was stopped by {number.name}"))
        if drain_seconds > 0:
            tasks.start("stay", stay(systemd, lambda: agent.signs))

    leaving, reloading = (STOPPING + RELOADING, ()) if hang_up_ends() else (STOPPING, RELOADING)
    with delivered(leaving, stop), delivered(reloading, lambda _: reloads.ask()):
        tasks.start("reloads", reloads.run())
        tasks.start("supervised", attend(systemd, lambda: agent.view, lambda: agent.signs))
        systemd.ready()
        ending = await agent.run(tasks)
    systemd.stopping()
    return ending
