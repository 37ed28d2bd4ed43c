"""What a probe is asked to read, and whether anything is configured.

Light on purpose: where there is no configuration, the settings and their library stay unloaded.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.probe.snapshot import ProbeOptions

SYSTEM_CONFIGURATION = Path("/etc/gpu-agent/agent.toml")
ENVIRONMENT_PREFIX = "GPU_AGENT_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """The probe's part of the settings, the same that `gpu-agent run` would have."""

    options: ProbeOptions = field(default_factory=ProbeOptions)
    simulate: str | None = None
    apart: str = ""
    """Tells simulated machines on one host apart."""


def is_configured(arguments: argparse.Namespace, environ: Mapping[str, str]) -> bool:
    """Whether there are settings to load: named, in the environment, or in the system's place."""
    if arguments.config is not None or arguments.state_dir is not None:
        return True
    return any(name.upper().startswith(ENVIRONMENT_PREFIX) for name in environ) or (
        SYSTEM_CONFIGURATION.exists()
    )
