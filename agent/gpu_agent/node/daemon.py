"""The agent as a process: its state directory, its NVML child, its control socket, its signals, its exit code.

It runs once in a process. `agent` holds the session's loop.
"""

import asyncio
import os
import platform
import signal
from collections.abc import Callable
from enum import IntEnum

from gpu_agent.node.agent import Agent
from gpu_agent.node.control.server import ControlServer, ControlSocket, open_control_socket
from gpu_agent.node.gpu_readings import open_collectors
from gpu_agent.node.identity import (
    IdentityError,
    IdentityFile,
    default_state_dir,
    load_identity,
    lock_state_dir,
)
from gpu_agent.node.liveness import extend_stop, report_liveness
from gpu_agent.node.prober import open_gpus
from gpu_agent.node.settings import RELOADABLE, AgentSettings
from gpu_agent.runtime.config.sources import log_unknown_variables
from gpu_agent.runtime.logs import Logger, configure
from gpu_agent.runtime.reload import SettingsReloader
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.signals import RELOADING, STOPPING, signals_to_loop, terminal_attached
from gpu_agent.runtime.tasks import TaskCrashedError, Tasks
from gpu_agent.session.types import Exit
from gpu_agent.version import __version__

_LOG = Logger("node")


class ExitCode(IntEnum):
    """How a run ends, as exit codes."""

    LEFT = 0
    """Asked to stop, and did."""
    CRASHED = 1
    """A fault of ours; the log has it."""
    UNUSABLE_STATE = 4
    """The state directory cannot be used, or another agent uses it."""
    REFUSED = 6
    """The registry wants nothing of this node; a person must act."""


def run(settings: AgentSettings, read: Callable[[], AgentSettings]) -> ExitCode:
    """Run the agent in this process until it is ended; `read` gives the settings anew."""
    configure(settings.log_level)
    log_unknown_variables(AgentSettings, os.environ)
    state_dir = settings.state_dir or default_state_dir()
    try:
        with lock_state_dir(state_dir) as identity, open_control_socket(settings, state_dir) as door:
            load_identity(identity)
            return asyncio.run(_run(settings, identity, door, read=read))
    except IdentityError as error:
        _LOG.error("state_directory_unusable", problem=str(error))
        return ExitCode.UNUSABLE_STATE
    except TaskCrashedError:
        return ExitCode.CRASHED


async def _run(
    settings: AgentSettings,
    identity: IdentityFile,
    door: ControlSocket | None,
    *,
    read: Callable[[], AgentSettings],
) -> ExitCode:
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
    reading = open_gpus(
        simulate=settings.simulate,
        seed=f"{platform.node()}{apart}",
        deadline_seconds=settings.deadline_seconds,
        keep_open=settings.poll_gpus,
    )
    async with reading as read_gpus, Tasks() as tasks:
        agent = Agent(settings, identity, read_gpus, collecting=open_collectors(settings))
        if door is not None:
            tasks.start("local-socket", ControlServer(agent.front, door.house).serve(door.listener, tasks))
        ending = await _live(agent, tasks, read)
        tasks.end()
    _LOG.info("agent_ended", reason=ending.reason, failed=ending.failed)
    return ExitCode.REFUSED if ending.failed else ExitCode.LEFT


async def _live(agent: Agent, tasks: Tasks, read: Callable[[], AgentSettings]) -> Exit:
    """Let the agent run, hear signals meanwhile, and keep systemd informed."""
    systemd = SystemdNotifier(os.environ)
    reloads = SettingsReloader(
        agent.settings, read=read, at_once=RELOADABLE, take_over=agent.take_over, systemd=systemd
    )

    def stop(number: signal.Signals) -> None:
        drain_seconds = agent.settings.drain_on_stop_seconds
        _LOG.info("agent_stopping", signal=number.name, drain_seconds=drain_seconds)
        systemd.stopping()
        tasks.start("signal", agent.stop(f"the agent was stopped by {number.name}"))
        if drain_seconds > 0:
            tasks.start("stay", extend_stop(systemd, lambda: agent.signs))

    leaving, reloading = (STOPPING + RELOADING, ()) if terminal_attached() else (STOPPING, RELOADING)
    with signals_to_loop(leaving, stop), signals_to_loop(reloading, lambda _: reloads.ask()):
        tasks.start("reloads", reloads.run())
        tasks.start("supervised", report_liveness(systemd, lambda: agent.view, lambda: agent.signs))
        systemd.ready()
        ending = await agent.run(tasks)
    systemd.stopping()
    return ending
