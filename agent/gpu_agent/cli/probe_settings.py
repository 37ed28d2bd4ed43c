"""The probe's part of the agent's settings, for a machine where something is configured.

A probe reaches no registry, so none need be named.
"""

from pathlib import Path

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.probe.options import ProbeOptions
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.wire.declaration import Owner

_NO_REGISTRY = {"registry_url": "ws://localhost/"}


def probe_options(configuration: str | None) -> ProbeOptions:
    """Where to look, and what the owner declares; raises `Failure` when the configuration is wrong."""
    return _settings(configuration).probe_options


def owner_of(configuration: str | None) -> Owner:
    """What the owner states beside what is found; raises `Failure` when the configuration is wrong."""
    return _settings(configuration).owner


def _settings(configuration: str | None) -> AgentSettings:
    try:
        return load(_NO_REGISTRY, config=None if configuration is None else Path(configuration))
    except SettingsError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
