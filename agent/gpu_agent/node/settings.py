"""The agent's settings: defaults ← `agent.toml` ← `GPU_AGENT_*` ← command line, validated and frozen.

It reads files and environment once. Each fault becomes a sentence with the next step in `SettingsError`.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_agent.local.socket_path import SOCKET_NAME
from gpu_agent.node.connection.proxy import ProxySetting
from gpu_agent.node.connection.tls import Security
from gpu_agent.node.schedule import parse
from gpu_agent.node.setting_values import (
    DEFAULT_PORT,
    NO_CREDENTIALS,
    NODE_PATH,
    OLDEST_READING_SECONDS,
    Endpoint,
    Folders,
    Labels,
    Names,
    Pins,
    Span,
    check_registry_url,
    check_simulation,
    fresh_reading,
    token_file,
)
from gpu_agent.node.socket_file import SocketUnavailableError
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.models.scanner import DiskPatience
from gpu_agent.probe.snapshot import FeaturePolicy, ProbeOptions
from gpu_agent.runtime.config.load import ConfigPath, fault_text, load_settings, setting_name
from gpu_agent.runtime.config.sources import NESTED
from gpu_agent.runtime.tls.contexts import OwnCertificate
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import ModelStatus
from gpu_agent.wire.messages import Name

# The table `[public_jobs]`: when and how far the owner of a machine lets jobs of the public pool in.
#
# It checks what was written and judges nothing: `limits` does.


LONGEST_PAUSE_SECONDS = 86_400.0


def _split_hours(value: object) -> object:
    """Accept `a; b` where a list of hours is meant: a variable has no lists."""
    if not isinstance(value, str):
        return value
    return tuple(entry.strip() for entry in value.split(";") if entry.strip())


def _check_hours(entry: str) -> str:
    parse([entry])
    return entry


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(_unknown_zone()) from None
    return name


def _unknown_zone() -> str:
    try:
        ZoneInfo("UTC")
    except ZoneInfoNotFoundError:  # as in many slim images
        return "this machine has no time zones; install its package tzdata, or `pip install tzdata`"
    return "this machine knows no such time zone; write it like Europe/Berlin"


class PublicJobsSettings(BaseModel):
    """What must hold for public jobs to be let in, besides `accept_public_jobs`.

    What is not set asks for nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Annotated[
        tuple[Annotated[str, AfterValidator(_check_hours)], ...], BeforeValidator(_split_hours), NoDecode
    ] = ()
    """Hours of the week, local time; none are all."""
    time_zone: Annotated[str, AfterValidator(_check_zone)] | None = None
    """Whose local time; None takes the machine's."""
    max_temperature_c: Annotated[float, Field(ge=20, le=120, allow_inf_nan=False)] | None = None
    """From this temperature of the hottest GPU on, no public job is let in."""
    min_free_memory_mb: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """So much must be free on at least one usable GPU."""
    pause_while_in_use: bool = False
    """Whether somebody else's work on a GPU keeps public jobs out."""
    own_programs: Names = ()
    """Programs that are not somebody else, by name, with all that they start."""
    resume_after_seconds: Annotated[float, Field(ge=0, le=LONGEST_PAUSE_SECONDS, allow_inf_nan=False)] = 60.0
    """How long a reading must be well again before public jobs are let in again."""


# What the owner says of the local socket: groups by name or number, found when the socket is made.
#
# It looks nothing up while settings are read: a directory of users may be slow, or away.


if sys.platform != "win32":
    import grp

_RUNTIME_VARIABLE = "RUNTIME_DIRECTORY"
"""The variable by which systemd says where a unit's sockets belong."""
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}\$?")


def _check_group(value: str) -> str:
    if not _GROUP.fullmatch(value):
        raise ValueError("a group is a name or a number")
    return value


Group = Annotated[str, AfterValidator(_check_group)]
"""A group of the system's, by name or number."""


def group_id(group: str | None, setting: str) -> int | None:
    """Look a group up; blocks. Raises `SocketUnavailableError` where there is none of that name."""
    if group is None or group.isdecimal():
        return None if group is None else int(group)
    if sys.platform == "win32":
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, OSError):
        raise SocketUnavailableError(
            f"there is no group {group!r} on this machine; make it, or name another one with {setting}"
        ) from None


def systemd_socket_path() -> Path | None:
    """Find the place that a unit is given for its sockets; None outside of one."""
    runtime = os.environ.get(_RUNTIME_VARIABLE, "").partition(":")[0]
    return Path(runtime) / SOCKET_NAME if runtime else None


# The agent's settings: defaults ← `agent.toml` ← `GPU_AGENT_*` ← flags, checked and frozen.
#
# Reads files and environment once and changes nothing. What is wrong comes back as
# `SettingsError`, a sentence for each fault with the next step.


DEFAULT_CONFIG = Path("/etc/gpu-agent/agent.toml")
ENVIRONMENT_PREFIX = "GPU_AGENT_"
LONGEST_DRAIN_SECONDS = 86400.0
LONGEST_INTERVAL_SECONDS, LONGEST_DEADLINE_SECONDS = 30.0, 10.0
"""One interval, a GPU reading and a look at the disks, each as late as it may be, stay under that."""
_CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
"""The variable by which systemd says where it put a unit's credentials."""
_CREDENTIAL = "join-token"
_WAIT_SECONDS = 1.0
_SHARE_OF_A_WAIT = 0.2
"""Of the time for a look, for the first disk that does not answer; all further ones take as long together."""


class DeclaredModel(BaseModel):
    """A `[[declared_models]]` table: what the owner states of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: Annotated[Name, Field(min_length=1)]
    version: Name | None = None
    kind: Name | None = None
    src_lang: Name | None = None
    tgt_lang: Name | None = None
    dialect: Name | None = None
    enabled: bool = True
    status: ModelStatus | None = None
    hidden: bool = False


class AgentSettings(BaseSettings):
    """All that `gpu-agent run` can be told. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=NESTED
    )

    registry_url: Annotated[str, AfterValidator(check_registry_url)]
    join_token_file: Annotated[ConfigPath, AfterValidator(token_file)] | None = None
    """Holds the join token for first contact; nobody but the agent should read it."""
    join_token: SecretStr | None = None
    """The join token itself, for an environment that keeps secrets; a file goes before it."""
    proxy: ProxySetting = None
    """An HTTP proxy on the way to the registry; None goes straight, whatever the environment says."""
    tls_ca_file: ConfigPath | None = None
    """Authorities that vouch for the registry; None takes the system's, or `tls_pin` alone."""
    tls_pin: Pins = ()
    """The registry has one of these keys."""
    tls_cert_file: ConfigPath | None = None
    """The agent's own certificate, for a registry that asks for one."""
    tls_key_file: ConfigPath | None = None
    """Its key; None looks for it in the certificate's file."""
    insecure_plaintext: bool = False
    """Danger: let tokens travel to other machines readable for who listens on the way."""
    state_dir: ConfigPath | None = None
    """Where the identity is kept; None takes the platform's place."""
    socket: ConfigPath | None = None
    """Where programs on this machine reach the agent; None takes systemd's place, else the state's."""
    socket_group: Group | None = None
    """Whose members may ask there and announce jobs; None leaves that to the agent's own group."""
    socket_operators: Group | None = None
    """Whose members may also drain and resume there."""
    simulate: Annotated[str | None, AfterValidator(check_simulation)] = None
    """GPUs that do not exist, for demos and tests: `8xH100-80GB`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    probe_interval_seconds: Annotated[
        float, Field(ge=0.1, allow_inf_nan=False), fresh_reading(LONGEST_INTERVAL_SECONDS)
    ] = 5.0
    deadline_seconds: Annotated[Span, fresh_reading(LONGEST_DEADLINE_SECONDS)] = 5.0
    """How long one reading may take before the agent goes on without it."""
    nvml_stale_after_seconds: Annotated[Span, fresh_reading(OLDEST_READING_SECONDS)] = OLDEST_READING_SECONDS
    """From this age on, the last good reading of the GPUs no longer vouches for them (§4)."""

    drain_on_stop_seconds: Annotated[float, Field(ge=0, le=LONGEST_DRAIN_SECONDS, allow_inf_nan=False)] = 0.0
    """How long a stop waits for the jobs that run here; 0 says goodbye at once."""

    poll_gpus: bool = True
    """False leaves NVIDIA GPUs alone between the readings that are asked for, so that they may sleep."""

    accept_public_jobs: bool = False
    public_jobs: PublicJobsSettings = Field(default_factory=PublicJobsSettings)
    """What must hold besides for public jobs to be let in."""
    labels: Labels = Field(default_factory=dict)
    max_concurrent_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    endpoint: Endpoint | None = None
    """Where the worker on this machine is reached."""

    hub_roots: Folders | None = None
    """Hugging Face caches; None takes the places where the hub's own library keeps one."""
    ollama_roots: Folders | None = None
    """Ollama's model folders; None takes the places where Ollama keeps one."""
    model_directories: Folders = ()
    cross_file_systems: bool = False
    """Whether what is mounted below one of those places is searched too."""
    declared_models: tuple[DeclaredModel, ...] = ()
    features: dict[Name, bool] = Field(default_factory=dict)
    """true claims a feature, false forbids it; what is not named is left to the models."""
    advanced_features: tuple[Name, ...] = ()

    collectors: Names | None = None
    """Which collectors join NVML; None takes all that are installed."""
    sys_dir: ConfigPath = Path("/sys")
    """Where collectors find sysfs: a container may have the machine's in another place."""

    @model_validator(mode="after")
    def _agree_on_tls(self) -> Self:
        if self.tls_key_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_key_file is named and tls_cert_file is not: name the certificate too")
        told = [name for name in ("tls_ca_file", "tls_pin", "tls_cert_file") if getattr(self, name)]
        if told and urlsplit(self.registry_url).scheme != "wss":
            raise ValueError(
                f"{told[0]} is set and registry_url begins with ws://, which is not encrypted: write wss:// "
                "there, or leave the settings for TLS out"
            )
        return self

    @property
    def security(self) -> Security:
        """How the registry is known, and what this node proves itself with besides its token."""
        return Security(
            ca_file=self.tls_ca_file,
            pins=frozenset(self.tls_pin),
            own=None if self.tls_cert_file is None else OwnCertificate(self.tls_cert_file, self.tls_key_file),
            insecure_plaintext=self.insecure_plaintext,
        )

    @property
    def owner(self) -> Owner:
        """What the owner states beside what the probe finds."""
        return Owner(
            accept_public_jobs=self.accept_public_jobs,
            labels=dict(self.labels),
            max_concurrent_jobs=self.max_concurrent_jobs,
            endpoint=self.endpoint,
        )

    @property
    def probe_options(self) -> ProbeOptions:
        """What the probe is told."""
        return ProbeOptions(
            hub_roots=self.hub_roots,
            ollama_roots=self.ollama_roots,
            model_directories=self.model_directories,
            cross_file_systems=self.cross_file_systems,
            declared_models=tuple(Declaration(**model.model_dump()) for model in self.declared_models),
            features=FeaturePolicy(stated=dict(self.features), advanced=self.advanced_features),
            patience=DiskPatience(
                wait_seconds=min(_WAIT_SECONDS, self.deadline_seconds * _SHARE_OF_A_WAIT),
                stale_after_seconds=self.nvml_stale_after_seconds,
            ),
            collectors=self.collectors,
            surroundings=Surroundings(sys_dir=self.sys_dir),
        )


def load(flags: Mapping[str, object], *, config: Path | None = None) -> AgentSettings:
    """Read all layers; raises `SettingsError`. Flags that were not given are left out or None.

    Where no layer says which join token to send, one that systemd hands the unit is taken.
    """
    settings = load_settings(AgentSettings, flags, default=DEFAULT_CONFIG, config=config, sentence=_sentence)
    if settings.socket is None:
        settings = settings.model_copy(update={"socket": systemd_socket_path()})
    if settings.join_token_file is None and settings.join_token is None:
        return settings.model_copy(update={"join_token_file": _systemd_credential()})
    return settings


def _systemd_credential() -> Path | None:
    """Find the unit's credential; a blank one stands for none."""
    folder = os.environ.get(_CREDENTIALS_DIRECTORY)
    if not folder:
        return None
    path = Path(folder) / _CREDENTIAL
    try:
        return path if path.is_file() and path.read_bytes().strip() else None
    except OSError:  # whoever opens it for its token says why it cannot
        return path


def _sentence(error: ErrorDetails) -> str | None:
    name, problem = setting_name(error), fault_text(error)
    if name == "registry_url" and error["type"] == "missing":
        return (
            "no registry is named: write registry_url into /etc/gpu-agent/agent.toml, or add "
            f"--registry wss://HOST:{DEFAULT_PORT}{NODE_PATH}"
        )
    if name in ("join_token", "join_token_file", "proxy") or problem.startswith(NO_CREDENTIALS):
        return f"{name}: {problem}"  # whatever it is, it may be the secret
    return None


# Which settings a running agent takes over when they are read again, and what of it they concern.
#
# Names only: reading and taking over is done elsewhere. What is not named here waits for a restart.


SENT_AT_REGISTRATION = frozenset({"endpoint", "features", "advanced_features"})
"""What only a registration tells (§3.1)."""

MODEL_SEARCH = frozenset(
    {
        "hub_roots",
        "ollama_roots",
        "model_directories",
        "cross_file_systems",
        "declared_models",
        "features",
        "advanced_features",
    }
)
"""What the probe goes by where it looks for models."""

RELOADABLE = (
    SENT_AT_REGISTRATION
    | MODEL_SEARCH
    | {
        "join_token_file",
        "join_token",
        "proxy",
        "tls_ca_file",
        "tls_pin",
        "tls_cert_file",
        "tls_key_file",
        "insecure_plaintext",
        "log_level",
        "probe_interval_seconds",
        "drain_on_stop_seconds",
        "accept_public_jobs",
        "public_jobs",
        "labels",
        "max_concurrent_jobs",
    }
)
"""All that a running agent can take over."""
