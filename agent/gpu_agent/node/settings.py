"""The agent's settings: defaults ← `agent.toml` ← `GPU_AGENT_*` ← command line, validated and frozen.

It reads files and environment once. Each fault becomes a sentence with the next step in `SettingsError`.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.local.socket_path import SOCKET_NAME
from gpu_agent.node.connection.tls import Security
from gpu_agent.node.setting_values import (
    DEFAULT_PORT,
    EXACT_NUMBER,
    EXACT_TRUTH,
    NO_CREDENTIALS,
    NODE_PATH,
    OLDEST_READING_SECONDS,
    CommandWords,
    Endpoint,
    Folders,
    FreshReading,
    Group,
    Labels,
    Lanes,
    Names,
    Pins,
    RegistryUrl,
    Span,
    check_simulation,
    textfile,
    token_file,
)
from gpu_agent.probe.checks.judgement import Expected
from gpu_agent.probe.collectors.protocol import Surroundings
from gpu_agent.probe.models.all_sources import SOURCES
from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.scanner import DiskPatience
from gpu_agent.probe.snapshot import FeaturePolicy, ProbeOptions
from gpu_agent.runtime.config.fields import ConfigPath, Listen
from gpu_agent.runtime.config.load import fault_text, load_settings, setting_name
from gpu_agent.runtime.config.sources import NESTED
from gpu_agent.runtime.proxy import ProxySetting
from gpu_agent.runtime.schedule import Hours, TimeZone
from gpu_agent.runtime.tls.contexts import OwnCertificate
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import ModelStatus
from gpu_agent.wire.messages import MAX_GPUS, Name
from gpu_agent.wire.settings import Setting

DEFAULT_CONFIG = Path("/etc/gpu-agent/agent.toml")
ENVIRONMENT_PREFIX = "GPU_AGENT_"
MAX_DRAIN_SECONDS = 86_400.0
MAX_PAUSE_SECONDS = 86_400.0
MAX_INTERVAL_SECONDS, MAX_DEADLINE_SECONDS = 30.0, 10.0
"""One interval, one GPU reading and one scan of the disks together stay below `OLDEST_READING_SECONDS`."""

_CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
"""The variable by which systemd says where it put a unit's credentials."""
_CREDENTIAL = "join-token"
_RUNTIME_DIRECTORY = "RUNTIME_DIRECTORY"
"""The variable by which systemd says where a unit's sockets belong."""
_DISK_WAIT_SECONDS = 1.0
_DISK_WAIT_SHARE = 0.2
"""The share of the deadline for the first disk that does not answer; all others share as much again."""


class PublicJobsSettings(BaseModel):
    """The table `[public_jobs]`: what must hold for public jobs to start, besides `accept_public_jobs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Annotated[
        Hours,
        Setting(
            'when public jobs may start: `"mon-fri 18:00-08:00"`, `"sat-sun"`, `"22:00-06:00"`; `[]` '
            "is always. Hours past midnight belong to the day on which they begin",
            kind="list of hours",
        ),
    ] = ()
    time_zone: Annotated[
        TimeZone | None,
        Setting(
            "the time zone of these hours, such as `Europe/Berlin`; else the machine's",
            kind="name",
            example='"Europe/Berlin"',
        ),
    ] = None
    max_temperature_c: Annotated[
        Annotated[float, Field(ge=20, le=120, allow_inf_nan=False)] | None,
        Setting(
            "no public jobs start while the hottest GPU is this hot, and until it is 5 °C cooler",
            kind="°C",
            example="80",
        ),
    ] = None
    min_free_memory_mb: Annotated[
        Annotated[int, Field(ge=1, le=100_000_000)] | None,
        Setting(
            "the memory that must be free on at least one usable GPU",
            kind="MiB",
            example="8000",
        ),
    ] = None
    pause_while_in_use: Annotated[
        bool,
        Setting(
            "no public jobs start while somebody else uses a GPU: a process that computes there and belongs "
            "to no worker that announced its jobs, or use of 30 % and more for 20 s with neither process "
            "nor job"
        ),
    ] = False
    own_programs: Annotated[
        Names,
        Setting(
            "programs of the owner, with all processes that they start: they count as no other user. Names "
            "as `ps -o comm` shows them, of which the first 15 letters count. Name a worker here that uses "
            "a GPU before its first job"
        ),
    ] = ()
    resume_after_seconds: Annotated[
        float,
        Field(ge=0, le=MAX_PAUSE_SECONDS, allow_inf_nan=False),
        Setting(
            "how long a reading must be good again before public jobs may start; a schedule takes effect at "
            "once"
        ),
    ] = 60.0


CheckSpan = Annotated[Span, Field(le=86_400), EXACT_NUMBER]
"""A check's deadline: a day is longer than any diagnosis takes."""


class ChecksSettings(BaseModel):
    """The table `[checks]`: what the admission checks expect of this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_count: Annotated[
        Annotated[int, Field(ge=1, le=MAX_GPUS)] | None,
        EXACT_NUMBER,
        Setting("how many GPUs this machine has; MIG devices do not count", kind="number", example="8"),
    ] = None
    gpu_model: Annotated[
        Annotated[Name, Field(min_length=1)] | None,
        Setting("a part of the name of each GPU", kind="text", example='"H100"'),
    ] = None
    pcie_width: Annotated[
        Lanes | None,
        EXACT_NUMBER,
        Setting(
            "lanes of each GPU's PCIe link: 1, 2, 4, 8, 12, 16 or 32",
            kind="lanes",
            unset="the most that the card can",
            example="16",
        ),
    ] = None
    pcie_speed_gts: Annotated[
        Annotated[float, Field(gt=0, le=256, allow_inf_nan=False)] | None,
        EXACT_NUMBER,
        Setting(
            "speed of each GPU's PCIe link; judged only while memory is copied, because an idle link slows "
            "down",
            kind="GT/s",
            unset="the most that the card can",
            example="32",
        ),
    ] = None
    min_bandwidth_gb_s: Annotated[
        Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] | None,
        EXACT_NUMBER,
        Setting(
            "the least speed at which memory must be copied to each GPU and back. With it memory is copied "
            "whenever checks run. Without it the speed is only reported, and memory is copied on a GPU once "
            "for each request, and where an earlier result of the copies must be repeated",
            kind="GB/s",
            example="20",
        ),
    ] = None
    gpu_seconds: Annotated[CheckSpan, Setting("the longest time for the check of one GPU")] = 30.0
    hook: Annotated[
        CommandWords,
        Setting(
            "a command that checks this machine, with its arguments: it passes by exit status 0, and its "
            "last line is shown. No shell runs it, and it gets no variable that may hold a credential",
            kind="list of words",
            example='["dcgmi", "diag", "-r", "1"]',
        ),
    ] = ()
    hook_seconds: Annotated[CheckSpan, Setting("the longest time for the hook")] = 300.0
    hook_while_in_use: Annotated[
        bool,
        EXACT_TRUTH,
        Setting("whether the hook may run while a GPU is in use, as it may if it touches none"),
    ] = False

    @property
    def expected(self) -> Expected:
        """The same for the probe."""
        return Expected(**self.model_dump())


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
    """All settings of `gpu-agent run`. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=NESTED
    )

    registry_url: Annotated[
        RegistryUrl,
        Setting(
            "the registry's address: `ws://` or `wss://`; without a path it is `/ws/node`. Of a registry on "
            "several machines, name each one's address: in a list, or with commas between them "
            "(see *Scale* in the documentation). `registry_urls` is another name of this setting",
            other_name="registry_urls",
            kind="URL, or list of URLs",
            example='"wss://registry.example:8080/ws/node"',
            option="--registry",
            metavar="URL",
        ),
    ]
    join_token_file: Annotated[
        Annotated[ConfigPath, AfterValidator(token_file)] | None,
        Setting(
            "a file with the token for the first contact; else `join_token` is used, else the credential "
            "`join-token` that systemd hands the unit. Only the agent's user should be able to read it",
            example='"/etc/gpu-agent/join-token"',
            option="--join-token-file",
            metavar="FILE",
            reload=True,
        ),
    ] = None
    join_token: Annotated[
        SecretStr | None,
        Setting(
            "the token itself; safer in the variable, or in a file, than in an `agent.toml` that every user "
            "can read",
            example='"gpuj_0123abcd_…"',
            reload=True,
        ),
    ] = None
    proxy: Annotated[
        ProxySetting,
        Setting(
            "an HTTP proxy between this machine and the registry: `http://HOST:PORT`, or "
            "`http://USER:PASSWORD@HOST:PORT`; write one with a password into the variable. Without it the "
            "agent connects directly, whatever `HTTPS_PROXY` and similar variables say",
            kind="URL",
            example='"http://proxy.example:3128"',
            reload=True,
        ),
    ] = None
    tls_ca_file: Annotated[
        ConfigPath | None,
        Setting(
            "the authorities that may issue the registry's certificate, in PEM: an authority's certificate, "
            "or the registry's own; else the system's authorities are used, or `tls_pin` alone",
            example='"/etc/gpu-agent/ca.pem"',
            option="--tls-ca-file",
            metavar="FILE",
            reload=True,
        ),
    ] = None
    tls_pin: Annotated[
        Pins,
        Setting(
            "the registry has one of these keys, written `sha256//…` as curl does; without `tls_ca_file` "
            "nothing else in its certificate is checked (see *Encrypt it* in the documentation). Name "
            "several, with "
            "semicolons between them in the option or the variable, to prepare a change of keys",
            kind="list of pins",
            option="--tls-pin",
            metavar="PIN",
            reload=True,
        ),
    ] = ()
    tls_cert_file: Annotated[
        ConfigPath | None,
        Setting(
            "this node's own certificate in PEM, for a registry that asks for one",
            example='"/etc/gpu-agent/node.pem"',
            option="--tls-cert-file",
            metavar="FILE",
            reload=True,
        ),
    ] = None
    tls_key_file: Annotated[
        ConfigPath | None,
        Setting(
            "the key of that certificate, which only the agent's user or group may read; else the key is in "
            "the certificate's file",
            example='"/etc/gpu-agent/node.key"',
            option="--tls-key-file",
            metavar="FILE",
            reload=True,
        ),
    ] = None
    insecure_plaintext: Annotated[
        bool,
        Setting(
            "danger: send tokens to other machines over `ws://`: anyone on the network path can read them",
            option="--insecure-plaintext",
            reload=True,
        ),
    ] = False
    state_dir: Annotated[
        ConfigPath | None,
        Setting(
            "the directory of the node's identity; else the platform's place for a user's state",
            example='"/var/lib/gpu-agent"',
            option="--state-dir",
            metavar="DIR",
        ),
    ] = None
    socket: Annotated[
        ConfigPath | None,
        Setting(
            "the local socket, where programs on this machine reach the agent (see *The local socket* in "
            "the documentation); "
            "none means `agent.sock` in the directory that systemd gives the unit, else in the state "
            "directory",
            example='"/run/gpu-agent/agent.sock"',
        ),
    ] = None
    socket_group: Annotated[
        Group | None,
        Setting(
            "the group whose members may use the local socket: ask for the status and announce jobs; none "
            "means the agent's own group. The agent's user must be a member of it",
            kind="group, by name or number",
            example='"gpu-users"',
        ),
    ] = None
    socket_operators: Annotated[
        Group | None,
        Setting(
            "the group whose members may also drain and resume through the local socket; `socket_group` "
            "must let them in too. None means root and the agent's own user",
            kind="group, by name or number",
            example='"gpu-users"',
        ),
    ] = None
    metrics_listen: Annotated[
        Listen | None,
        Setting(
            "the address of this agent's own metrics for Prometheus, at `/metrics`; one that other machines "
            "reach must have `tls_cert_file`, and is encrypted by it (see *Monitor the fleet* in the "
            "documentation)",
            kind="HOST:PORT",
            example='"127.0.0.1:9835"',
        ),
    ] = None
    metrics_file: Annotated[
        Annotated[ConfigPath, AfterValidator(textfile)] | None,
        Setting(
            "a file for node_exporter's textfile collector, written at each probe with the same metrics; the "
            "agent's user must be able to write its directory",
            example='"/var/lib/gpu-agent-metrics/gpu_agent.prom"',
        ),
    ] = None
    simulate: Annotated[
        str | None,
        AfterValidator(check_simulation),
        Setting(
            "simulated GPUs, for demos and tests, such as `8xH100-80GB` (see *Simulate machines* in the "
            "documentation); a "
            "registry has to allow them",
            example='"8xH100-80GB"',
            option="--simulate",
            metavar="SPEC",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Setting("the lowest level that is logged, to stderr", option="--log-level", reload=True),
    ] = "info"

    probe_interval_seconds: Annotated[
        float,
        Field(ge=0.1, allow_inf_nan=False),
        FreshReading(MAX_INTERVAL_SECONDS),
        Setting(
            "the time between two readings of the machine; an idle one is read every third time and before "
            "each heartbeat, and looked at between",
            reload=True,
        ),
    ] = 5.0
    deadline_seconds: Annotated[
        Span,
        FreshReading(MAX_DEADLINE_SECONDS),
        Setting(
            "the longest time for one reading; after it the agent goes on without",
            advanced=True,
        ),
    ] = 5.0
    nvml_stale_after_seconds: Annotated[
        Span,
        FreshReading(OLDEST_READING_SECONDS),
        Setting(
            "the age at which the last good reading of the GPUs is stale, and that of a disk for the models "
            "on it",
            advanced=True,
        ),
    ] = OLDEST_READING_SECONDS

    drain_on_stop_seconds: Annotated[
        float,
        Field(ge=0, le=MAX_DRAIN_SECONDS, allow_inf_nan=False),
        Setting(
            "the longest time that a stop (SIGTERM, Ctrl-C, `systemctl stop` and `restart`) waits for "
            "running jobs while no new ones start; 0 stops at once. A second signal, or a registry that "
            "cannot be reached, also stops at once (see *Run it as a service* in the documentation)",
            reload=True,
        ),
    ] = 0.0

    poll_gpus: Annotated[
        bool,
        Setting(
            "false: the agent reads NVIDIA GPUs when it starts and on request (`gpu-agent refresh`, "
            "`gpu-agent registry node refresh`), not in between, so that a laptop's GPU can sleep; its use "
            "is unknown then"
        ),
    ] = True

    accept_public_jobs: Annotated[
        bool, Setting("whether jobs of the public pool may run here", reload=True)
    ] = False
    public_jobs: Annotated[
        PublicJobsSettings,
        Setting("further conditions for public jobs, see below", kind="table", reload=True),
    ] = Field(default_factory=PublicJobsSettings)
    checks: Annotated[
        ChecksSettings,
        Setting("what the admission checks expect, see below", kind="table", reload=True),
    ] = Field(default_factory=ChecksSettings)
    labels: Annotated[
        Labels,
        Setting(
            "names and values that a job may require",
            kind="table of texts",
            example='zone = "a"',
            reload=True,
        ),
    ] = Field(default_factory=dict)
    max_concurrent_jobs: Annotated[
        Annotated[int, Field(ge=0, le=1_000_000)] | None,
        Setting(
            "the number of slots: how many jobs run here at a time; else the registry's default",
            example="4",
            reload=True,
        ),
    ] = None
    endpoint: Annotated[
        Endpoint | None,
        Setting(
            "the address of the worker on this machine; schedulers receive it as it is",
            kind="text",
            example='"http://10.0.0.2:9000"',
            reload=True,
            registers=True,
        ),
    ] = None

    hub_roots: Annotated[
        Folders | None,
        Setting(
            "Hugging Face caches",
            unset=SOURCES["huggingface"].places_in_words,
            example='["/srv/hub"]',
            reload=True,
        ),
    ] = None
    ollama_roots: Annotated[
        Folders | None,
        Setting(
            "Ollama's model folders",
            unset=SOURCES["ollama"].places_in_words,
            example='["/srv/ollama/models"]',
            reload=True,
        ),
    ] = None
    model_directories: Annotated[Folders, Setting("other folders with models", reload=True)] = ()
    cross_file_systems: Annotated[
        bool,
        Setting(
            "whether the search enters other file systems that are mounted below these places",
            advanced=True,
            reload=True,
        ),
    ] = False
    declared_models: Annotated[
        tuple[DeclaredModel, ...],
        Setting(
            "what the owner states about models, see below",
            kind="list of tables",
            example='model_id = "my/model"\nversion = "3"\nstatus = "ready"',
            reload=True,
        ),
    ] = ()
    features: Annotated[
        dict[Name, bool],
        Setting(
            "true claims a feature, false denies it; for one that is not named the models decide",
            kind="table of true or false",
            example="speech_rate_control = true",
            reload=True,
            registers=True,
        ),
    ] = Field(default_factory=dict)
    advanced_features: Annotated[
        tuple[Name, ...],
        Setting("further features, sent as they are; they decide nothing", reload=True, registers=True),
    ] = ()

    collectors: Annotated[
        Names | None,
        Setting(
            "the collectors that run beside NVML, such as `amd`; else all that are installed. `[]` is NVML "
            "alone (see *Collectors* in the documentation)",
            example='["amd"]',
            advanced=True,
        ),
    ] = None
    sys_dir: Annotated[
        ConfigPath,
        Setting("sysfs, for collectors: a container may have the machine's in another place", advanced=True),
    ] = Path("/sys")
    offer_integrated_gpus: Annotated[
        bool,
        Setting(
            "also offer graphics that are part of a processor (AMD's APUs, Intel's); else they are listed "
            "for this machine alone",
            advanced=True,
        ),
    ] = False

    @model_validator(mode="after")
    def _agree_on_tls(self) -> Self:
        if self.tls_key_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_key_file is named and tls_cert_file is not: name the certificate too")
        tls = [name for name in ("tls_ca_file", "tls_pin", "tls_cert_file") if getattr(self, name)]
        if tls and urlsplit(self.registry_urls[0]).scheme != "wss":
            raise ValueError(
                f"{tls[0]} is set and registry_url begins with ws://, which is not encrypted: write wss:// "
                "there, or leave the settings for TLS out"
            )
        return self

    @model_validator(mode="after")
    def _encrypt_metrics(self) -> Self:
        listen = self.metrics_listen
        if listen is not None and not listen.is_loopback and self.tls_cert_file is None:
            raise ValueError(
                f"metrics_listen = {str(listen)!r} is reached by other machines, and tls_cert_file is not "
                f"set: name this node's certificate, or listen on 127.0.0.1:{listen.port}"
            )
        return self

    @property
    def registry_urls(self) -> tuple[str, ...]:
        """All addresses of the registry; their scheme is the same."""
        return (self.registry_url,) if isinstance(self.registry_url, str) else self.registry_url

    @property
    def exposes_metrics(self) -> bool:
        """Whether this agent's metrics go anywhere."""
        return self.metrics_listen is not None or self.metrics_file is not None

    @property
    def security(self) -> Security:
        """How the agent authenticates the registry, and itself besides its token."""
        return Security(
            ca_file=self.tls_ca_file,
            pins=frozenset(self.tls_pin),
            own=None if self.tls_cert_file is None else OwnCertificate(self.tls_cert_file, self.tls_key_file),
            insecure_plaintext=self.insecure_plaintext,
        )

    @property
    def owner(self) -> Owner:
        """What the owner states, beside what the probe finds."""
        return Owner(
            accept_public_jobs=self.accept_public_jobs,
            labels=dict(self.labels),
            max_concurrent_jobs=self.max_concurrent_jobs,
            endpoint=self.endpoint,
        )

    @property
    def probe_options(self) -> ProbeOptions:
        """The options of the probe."""
        return ProbeOptions(
            model_paths={
                name: paths
                for name, row in SOURCES.items()
                if (paths := getattr(self, row.setting)) is not None
            },
            cross_file_systems=self.cross_file_systems,
            declared_models=tuple(ModelDeclaration(**model.model_dump()) for model in self.declared_models),
            features=FeaturePolicy(stated=dict(self.features), advanced=self.advanced_features),
            patience=DiskPatience(
                wait_seconds=min(_DISK_WAIT_SECONDS, self.deadline_seconds * _DISK_WAIT_SHARE),
                stale_after_seconds=self.nvml_stale_after_seconds,
            ),
            collectors=self.collectors,
            surroundings=Surroundings(sys_dir=self.sys_dir, offer_integrated_gpus=self.offer_integrated_gpus),
        )


def load(flags: Mapping[str, object], *, config: Path | None = None) -> AgentSettings:
    """Read all sources; raises `SettingsError`. Options that were not given are left out or None.

    Where no source names a socket or a join token, systemd's runtime directory and credential apply.
    """
    sentence = partial(_sentence, config or DEFAULT_CONFIG)
    settings = load_settings(AgentSettings, flags, default=DEFAULT_CONFIG, config=config, sentence=sentence)
    if settings.socket is None:
        settings = settings.model_copy(update={"socket": systemd_socket_path()})
    if settings.join_token_file is None and settings.join_token is None:
        return settings.model_copy(update={"join_token_file": _systemd_credential()})
    return settings


def systemd_socket_path() -> Path | None:
    """Find the socket's path in the unit's runtime directory; None outside of a unit."""
    runtime = os.environ.get(_RUNTIME_DIRECTORY, "").partition(":")[0]
    return Path(runtime) / SOCKET_NAME if runtime else None


def _systemd_credential() -> Path | None:
    """Find the unit's credential; a blank one counts as none."""
    folder = os.environ.get(_CREDENTIALS_DIRECTORY)
    if not folder:
        return None
    path = Path(folder) / _CREDENTIAL
    try:
        return path if path.is_file() and path.read_bytes().strip() else None
    except OSError:  # the reader of the token says why it cannot be read
        return path


def _sentence(config: Path, error: ErrorDetails) -> str | None:
    name, problem = setting_name(error), fault_text(error)
    if name == "registry_url" and error["type"] == "missing":
        return (
            f"no registry is named: write registry_url into {config}, or start the agent with "
            f"--registry wss://HOST:{DEFAULT_PORT}{NODE_PATH}"
        )
    if name in ("join_token", "join_token_file", "proxy") or problem.startswith(NO_CREDENTIALS):
        return f"{name}: {problem}"  # without the value: it may be the secret
    return None
