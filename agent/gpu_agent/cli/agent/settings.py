"""The agent's settings for commands that reach no registry: none need be named."""

from pathlib import Path

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.config.load import SettingsError

_NO_REGISTRY = "wss://localhost/"  # agrees with settings for TLS and without


def load_settings(arguments: Arguments) -> AgentSettings:
    """Load them, the command's own options over the other layers; raises `Failure`."""
    flags = {
        "registry_url": _NO_REGISTRY,
        "simulate": arguments.simulate,
        "state_dir": arguments.state_dir,
    }
    try:
        return load(flags, config=None if arguments.config is None else Path(arguments.config))
    except SettingsError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
