"""The agent's settings: defaults ← `agent.toml` ← `GPU_AGENT_*` ← flags, checked and frozen.

Reads files and environment once and changes nothing. What is wrong comes back as
`SettingsError`, a sentence for each fault with the next step.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_agent.probe.collectors import Surroundings
from gpu_agent.probe.features import FeaturePolicy
from gpu_agent.probe.models.declared import Declaration
from gpu_agent.probe.options import ProbeOptions
from gpu_agent.probe.products import SimulationError
from gpu_agent.probe.simulation import parse
from gpu_agent.runtime.folders import Folder
from gpu_agent.runtime.layers import read
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.fields import MAX_LABELS, Name, Text
from gpu_agent.wire.inventory import ModelStatus

DEFAULT_CONFIG = Path("/etc/gpu-agent/agent.toml")
ENVIRONMENT_PREFIX = "GPU_AGENT_"
NODE_PATH = "/ws/node"
DEFAULT_PORT = 8080
OLDEST_READING_SECONDS = 60.0
"""A beat whose `probe_age_seconds` is over this is unhealthy (§4)."""
LONGEST_INTERVAL_SECONDS, LONGEST_DEADLINE_SECONDS = 30.0, 10.0
"""One interval, a GPU reading and a look at the disks, each as late as it may be, stay under that."""
_LONGEST_SHOWN = 60
_CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
"""The variable by which systemd says where it put a unit's credentials."""
_CREDENTIAL = "join-token"
_JOIN_PREFIX = "gpuj_"
_NO_CREDENTIALS = "no credentials go into a URL"


def _registry_url(value: str) -> str:
    """Check where the registry is; the path may be left out."""
    corrected = _corrected(value)
    parts = urlsplit(value)
    if parts.scheme not in ("ws", "wss"):
        raise ValueError(f"the registry is reached at ws:// or wss://; write {corrected}")
    if not parts.hostname:
        raise ValueError("it names no host; write ws://HOST:8080/ws/node")
    if parts.username or parts.password or "token=" in parts.query:
        raise ValueError(f"{_NO_CREDENTIALS}; put the join token into a file and name it")
    if parts.fragment:
        raise ValueError(f"a registry's URL has no fragment (#…); write {value.partition('#')[0]}")
    _ = parts.port  # raises ValueError for what is no port
    return corrected if parts.path in ("", "/") else value


def _corrected(value: str) -> str:
    """Guess the URL that was meant: `host`, `host:port` or `http://host:port` are common slips."""
    scheme, separator, rest = value.partition("://")
    rest = rest if separator else value
    host, slash, path = rest.partition("/")
    secure = scheme in ("wss", "https") and bool(separator)
    has_port = bool(re.search(r":\d+$", host))
    port = "" if has_port or separator else f":{DEFAULT_PORT}"
    written = f"/{path}" if slash and path else NODE_PATH
    return f"{'wss' if secure else 'ws'}://{host or 'HOST'}{port}{written}"


def _simulation(value: str | None) -> str | None:
    if value is not None:
        try:
            parse(value)
        except SimulationError as error:
            raise ValueError(str(error)) from None
    return value


def _paths(value: object) -> object:
    """Accept `a:b` where a list of folders is meant: environment and flags have no lists."""
    return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


def _names(value: object) -> object:
    """Accept `a,b` where a list of names is meant."""
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _labels(value: object) -> object:
    """Accept `a=1,b=2` where labels are meant."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    wrong = [name for name, sign, _ in pairs if not sign or not name.strip()]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no label; write name=value,name=value")
    return {name.strip(): text.strip() for name, _, text in pairs}


def _file_of_token(path: Path) -> Path:
    """Refuse a token in place of its file: where that stands, others can read it."""
    if path.name.startswith(_JOIN_PREFIX):
        raise ValueError("this is a token and no file: put it into one that the agent alone may read")
    return path


Folders = Annotated[tuple[Folder, ...], BeforeValidator(_paths), NoDecode]
Names = Annotated[tuple[Name, ...], BeforeValidator(_names), NoDecode]
Printable = StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")
"""Labels are compared and printed: nothing that steers a terminal."""
Labels = Annotated[
    dict[Annotated[Name, Printable], Annotated[Name, Printable]],
    Field(max_length=MAX_LABELS),
    BeforeValidator(_labels),
    NoDecode,
]
_Span = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _vouching(most_seconds: float) -> AfterValidator:
    """Keep a healthy node's last reading younger than the registry's limit, however slow its host is."""

    def check(seconds: float) -> float:
        if seconds > most_seconds:
            raise ValueError(
                f"at most {most_seconds:g} s: a registry takes a GPU reading older than "
                f"{OLDEST_READING_SECONDS:g} s for a sick node"
            )
        return seconds

    return AfterValidator(check)


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

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX)

    registry_url: Annotated[str, AfterValidator(_registry_url)]
    join_token_file: Annotated[Folder, AfterValidator(_file_of_token)] | None = None
    """Holds the join token for first contact; nobody but the agent should read it."""
    join_token: SecretStr | None = None
    """The join token itself, for an environment that keeps secrets; a file goes before it."""
    state_dir: Folder | None = None
    """Where the identity is kept; None takes the platform's place."""
    simulate: Annotated[str | None, AfterValidator(_simulation)] = None
    """GPUs that do not exist, for demos and tests: `8xH100-80GB`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    probe_interval_seconds: Annotated[
        float, Field(ge=0.1, allow_inf_nan=False), _vouching(LONGEST_INTERVAL_SECONDS)
    ] = 5.0
    deadline_seconds: Annotated[_Span, _vouching(LONGEST_DEADLINE_SECONDS)] = 5.0
    """How long one reading may take before the agent goes on without it."""
    nvml_stale_after_seconds: Annotated[_Span, _vouching(OLDEST_READING_SECONDS)] = OLDEST_READING_SECONDS
    """From this age on, the last good reading of the GPUs no longer vouches for them (§4)."""

    poll_gpus: bool = True
    """False leaves NVIDIA GPUs alone between the readings that are asked for, so that they may sleep."""

    accept_public_jobs: bool = False
    labels: Labels = Field(default_factory=dict)
    max_concurrent_jobs: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    endpoint: Text | None = None
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
    sys_dir: Folder = Path("/sys")
    """Where collectors find sysfs: a container may have the machine's in another place."""

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
            collectors=self.collectors,
            surroundings=Surroundings(sys_dir=self.sys_dir),
        )


def load(flags: Mapping[str, object], *, config: Path | None = None) -> AgentSettings:
    """Read all layers; raises `SettingsError`. Flags that were not given are left out or None.

    Where no layer says which join token to send, one that systemd hands the unit is taken.
    """
    settings = read(AgentSettings, flags, default=DEFAULT_CONFIG, config=config, sentence=_sentence)
    if settings.join_token_file is None and settings.join_token is None:
        return settings.model_copy(update={"join_token_file": _handed_by_systemd()})
    return settings


def _handed_by_systemd() -> Path | None:
    """Find the unit's credential; an empty one stands for none."""
    folder = os.environ.get(_CREDENTIALS_DIRECTORY)
    if not folder:
        return None
    path = Path(folder) / _CREDENTIAL
    return path if path.is_file() and path.stat().st_size else None


def _sentence(error: ErrorDetails, path: Path) -> str:
    name = ".".join(str(step) for step in error["loc"])
    if name == "registry_url" and error["type"] == "missing":
        return f"no registry is named; add --registry ws://HOST:{DEFAULT_PORT}{NODE_PATH}"
    if error["type"] == "extra_forbidden":
        return _unknown_key(error, path)
    problem = error["msg"].removeprefix("Value error, ")
    if name in ("join_token", "join_token_file") or problem.startswith(_NO_CREDENTIALS):
        return f"{name}: {problem}"  # whatever it is, it may be the secret
    shown = repr(error["input"])
    if len(shown) > _LONGEST_SHOWN:
        shown = f"{shown[:_LONGEST_SHOWN]}…"
    return f"{name}: {problem}, got {shown}"


def _unknown_key(error: ErrorDetails, path: Path) -> str:
    key = str(error["loc"][-1])
    nested = len(error["loc"]) > 1
    known = DeclaredModel.model_fields if nested else AgentSettings.model_fields
    nearest = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known)}"
    return f"{_place(key, path)}{key!r} is no setting; {hint}"


def _place(key: str, path: Path) -> str:
    """Say where a key stands, as `FILE:LINE: `, when it is found in the file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    spelled = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=\].]""")
    found = next((number for number, line in enumerate(lines, 1) if spelled.match(line)), None)
    return f"{path}: " if found is None else f"{path}:{found}: "
