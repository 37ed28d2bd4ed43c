"""The agent's settings as a probe uses them. A probe reaches no registry, so none need be named."""

import argparse
from pathlib import Path

from gpu_agent.cli.agent.probe_request import ProbeRequest
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.config.load import SettingsError

_NO_REGISTRY = "wss://localhost/"  # agrees with settings for TLS and without


def configured_request(arguments: argparse.Namespace) -> ProbeRequest:
    """What to look at; raises `Failure` when the configuration is wrong."""
    settings = load_settings(arguments)
    return ProbeRequest(
        options=settings.probe_options,
        simulate=settings.simulate,
        apart="" if settings.state_dir is None else f"\n{settings.state_dir}",
    )


def load_settings(arguments: argparse.Namespace) -> AgentSettings:
    """All settings, the command's own options before the other layers; raises `Failure`."""
    flags = {
        "registry_url": _NO_REGISTRY,
        "simulate": arguments.simulate,
        "state_dir": arguments.state_dir,
    }
    try:
        return load(flags, config=None if arguments.config is None else Path(arguments.config))
    except SettingsError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
