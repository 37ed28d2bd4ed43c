"""`gpu-agent run`: the agent in the foreground, until SIGTERM or Ctrl-C."""

import os
from functools import partial
from pathlib import Path

from gpu_agent import libraries  # noqa: F401 - before the first model
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.setting_options import setting_options
from gpu_agent.node import daemon
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.signals import run_as_first_process

DESCRIPTION = """\
Run the agent: probe this machine, register it, and send heartbeats until a signal stops it.
It retries for ever while the registry is away, and stores its id in the state directory.
Settings come from /etc/gpu-agent/agent.toml (or --config), then GPU_AGENT_* variables, then these
options. Log lines are JSON on stderr, or text on a terminal. SIGTERM and Ctrl-C end it within 5 s."""


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about=DESCRIPTION,
        example="gpu-agent run --registry wss://registry.example:8080 --join-token-file token",
        exits={
            ExitCode.OK: "stopped by a signal, after leaving the registry",
            ExitCode.FAILED: "an internal fault; the log has it",
            ExitCode.CONFIGURATION: "wrong settings, or a state directory that cannot be used",
            ExitCode.REFUSED: "the registry refuses this node for good; the last line says why",
        },
        asks=False,
        params=[
            option("--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"),
            *setting_options(AgentSettings),
        ],
    )


def main(arguments: Arguments) -> int:
    """Load the settings and run."""
    flags = {name: value for name, value in vars(arguments).items() if name != "config"}
    read = partial(load, flags, config=arguments.config)
    try:
        settings = read()
    except SettingsError as error:
        SystemdNotifier(os.environ).ended(f"the settings cannot be used: {error}")
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
    return run_as_first_process(lambda: daemon.run(settings, read))


COMMANDS: Commands = {
    "run": (declare, main),
}
