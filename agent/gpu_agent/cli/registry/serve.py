"""`gpu-agent registry serve`: run the registry until SIGTERM or Ctrl-C."""

import os
from functools import partial
from pathlib import Path

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.setting_options import setting_options
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.signals import run_as_first_process
from gpu_agent.server.settings import RegistrySettings, load

DESCRIPTION = """\
Run the registry: nodes connect to it, it decides their status and gives jobs their slots.
Settings come from /etc/gpu-agent/registry.toml (or --config), then GPU_REGISTRY_* variables,
then these options. Times are seconds, fractions welcome. It prints the addresses it listens on
as the event `registry_listening`."""


def declare_serve() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about=DESCRIPTION,
        example="gpu-agent registry serve --node-listen 10.0.0.1:8080 --tls-cert-file own.pem",
        exits={
            ExitCode.OK: "stopped by a signal, after leaving all nodes",
            ExitCode.FAILED: "it could not start, or broke; the log says why",
            ExitCode.CONFIGURATION: "wrong settings, or the extra [registry] is not installed",
        },
        asks=False,
        params=[
            option("--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"),
            *setting_options(RegistrySettings),
        ],
    )


def run_serve(arguments: Arguments) -> int:
    """Load the settings and serve."""
    flags = {name: value for name, value in vars(arguments).items() if name != "config"}
    read = partial(load, flags, config=arguments.config)
    try:
        settings = read()
    except SettingsError as error:
        SystemdNotifier(os.environ).ended(f"the settings cannot be used: {error}")
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
    try:
        from gpu_agent.server.serve import run
    except ModuleNotFoundError as missing:
        raise Failure(
            f"the registry needs the package {missing.name}, which the base install leaves out: "
            "pip install 'gpu-agent[registry]'",
            code=ExitCode.CONFIGURATION,
        ) from None
    return run_as_first_process(lambda: run(settings, read))


COMMANDS: Commands = {
    "serve": (declare_serve, run_serve),
}
