"""The agent as a process: state directory, NVML child, control socket, signals, exit code.

It runs once in a process. `agent` holds the session's loop.
"""

import asyncio
import os
import platform
import signal
from collections.abc import Callable
from enum import IntEnum

from gpu_agent.node.agent import Agent
from gpu_agent.node.control.access import ControlSocket, open_control_socket
from gpu_agent.node.control.handlers import RequestHandler
from gpu_agent.node.control.server import ControlServer
from gpu_agent.node.gpu_readings import open_collectors, open_gpus
from gpu_agent.node.identity import (
    IdentityError,
    IdentityFile,
    default_state_dir,
    load_identity,
    lock_state_dir,
)
from gpu_agent.node.liveness import extend_stop, report_liveness
from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.memory import keep_one_heap, return_free_memory
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

    STOPPED = 0
    """It was asked to stop, and did."""
    CRASHED = 1
    """An unexpected exception: the log has it."""
    UNUSABLE_STATE = 4
    """The state directory cannot be used, or another agent uses it."""
    REFUSED = 6
    """The registry refuses this node for good; a person must act."""


def run(settings: AgentSettings, read: Callable[[], AgentSettings]) -> ExitCode:
    """Run the agent in this process until it ends; `read` reads the settings again."""
    keep_one_heap()
    configure(settings.log_level)
    log_unknown_variables(AgentSettings, os.environ)
    state_dir = settings.state_dir or default_state_dir()
    try:
        with lock_state_dir(state_dir) as identity, open_control_socket(settings, state_dir) as control:
            load_identity(identity)
            return asyncio.run(_run(settings, identity, control, read=read))
    except IdentityError as error:
        _LOG.error("state_directory_unusable", problem=str(error))
        SystemdNotifier(os.environ).ended(str(error))
        return ExitCode.UNUSABLE_STATE
    except TaskCrashedError:
        return ExitCode.CRASHED


async def _run(
    settings: AgentSettings,
    identity: IdentityFile,
    control: ControlSocket | None,
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
    # Simulated agents side by side have GPUs of their own; a single one has the GPUs that `probe` shows.
    suffix = "" if settings.state_dir is None else f"\n{state_dir}"
    gpus = open_gpus(
        simulate=settings.simulate,
        seed=f"{platform.node()}{suffix}",
        deadline_seconds=settings.deadline_seconds,
        keep_open=settings.poll_gpus,
    )
    async with gpus as source, Tasks() as tasks:
        agent = Agent(settings, identity, source, collectors=open_collectors(settings))
        systemd = SystemdNotifier(os.environ)
        reloader = SettingsReloader(
            settings, read=read, take_over=agent.apply, systemd=systemd, ended=agent.note_reload
        )
        if control is not None:
            tasks.start("control-socket", _serve_control(agent, control, tasks))
        _start_metrics(agent, tasks)
        end = await _run_agent(agent, tasks, reloader, systemd=systemd)
        tasks.end()
    _LOG.info("agent_ended", reason=end.reason, failed=end.failed)
    if end.failed:
        systemd.ended(f"the registry refuses this node: {end.reason}")
    else:
        systemd.status(f"stopped: {end.reason}")
    return ExitCode.REFUSED if end.failed else ExitCode.STOPPED


async def _serve_control(agent: Agent, control: ControlSocket, tasks: Tasks) -> None:
    handler = RequestHandler(
        agent.jobs, control.policy, snapshot=agent.snapshot, submit=agent.submit, refresh=agent.refresh
    )
    await ControlServer(handler, control.policy).serve(control.listener, tasks)


def _start_metrics(agent: Agent, tasks: Tasks) -> None:
    """Expose the metrics where the settings ask for it."""
    settings = agent.settings
    if not settings.exposes_metrics:
        return
    from gpu_agent.node.metrics_export import serve_metrics, write_metrics  # noqa: PLC0415 - few ask for it

    if settings.metrics_listen is not None:
        own = None if settings.metrics_listen.is_loopback else settings.security.own
        tasks.start("metrics-listener", serve_metrics(settings.metrics_listen, own, agent.metrics))
    if settings.metrics_file is not None:
        path = settings.metrics_file
        tasks.start(
            "metrics-file",
            write_metrics(path, agent.metrics, every_seconds=lambda: agent.settings.probe_interval_seconds),
        )


async def _run_agent(
    agent: Agent,
    tasks: Tasks,
    reloader: SettingsReloader[AgentSettings],
    *,
    systemd: SystemdNotifier,
) -> Exit:
    """Run the agent, handle signals meanwhile, and report to systemd."""

    def stop(number: signal.Signals) -> None:
        drain_seconds = agent.settings.drain_on_stop_seconds
        _LOG.info("agent_stopping", signal=number.name, drain_seconds=drain_seconds)
        systemd.stopping()
        tasks.start("stop", agent.stop(f"the agent was stopped by {number.name}"))
        if drain_seconds > 0:
            tasks.start("extend-stop", extend_stop(systemd, agent.progress))

    stopping, reloading = (STOPPING + RELOADING, ()) if terminal_attached() else (STOPPING, RELOADING)
    with signals_to_loop(stopping, stop), signals_to_loop(reloading, lambda _: reloader.request()):
        tasks.start("reloader", reloader.run())
        tasks.start("liveness", report_liveness(systemd, agent.snapshot, agent.progress))
        systemd.ready()
        return_free_memory()
        end = await agent.run(tasks)
    systemd.stopping()
    return end
