"""The registry's settings: defaults ← file ← `GPU_REGISTRY_*` ← flags, checked, then frozen.

Thresholds have the names of §4 of the node protocol, in the file as in the environment and the flags.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.config.load import ConfigPath, load_settings
from gpu_agent.runtime.config.sources import NESTED
from gpu_agent.runtime.state_dir import default_state_dir
from gpu_agent.runtime.tls.contexts import OwnCertificate
from gpu_agent.server.address import Address
from gpu_agent.server.storage import SQLITE, check_location
from gpu_agent.server.tls import TlsFiles

# The registry's settings: defaults ← file ← `GPU_REGISTRY_*` ← flags, checked, then frozen.
#
# Thresholds are named as in §4 of the node protocol, in the file as in the environment and
# the flags. Opens nothing and starts nothing.


DEFAULT_CONFIG = Path("/etc/gpu-agent/registry.toml")
ENVIRONMENT_PREFIX = "GPU_REGISTRY_"
_DEFAULTS = Thresholds()


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _names(value: object) -> object:
    """Accept `a,b` where a list of names is meant: environment and flags have no lists."""
    return (
        tuple(name for part in value.split(",") if (name := part.strip()))
        if isinstance(value, str)
        else value
    )


StoreLocation = Annotated[str, AfterValidator(check_location)]
Listen = Annotated[Address, BeforeValidator(_address), NoDecode]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), NoDecode]
Span = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Weight = Annotated[int, Field(ge=0, le=1_000_000)]
Percent = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class RegistrySettings(BaseSettings):
    """All that `registry serve` can be told. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=NESTED
    )

    node_listen: Listen = Address("127.0.0.1", 8080)
    operator_listen: Listen = Address("127.0.0.1", 8081)
    store: StoreLocation = SQLITE
    """What keeps the registry's state, and where."""
    state_dir: ConfigPath | None = None
    """What the registry writes; None takes the platform's place."""
    allow_simulated: bool = False
    auth: Literal["on", "off"] = "on"
    """Whether nodes and operators must present tokens; off only where this machine alone gets in."""
    insecure_no_auth: bool = False
    """Danger: let anybody who reaches the ports act as any node and any operator."""
    tls_cert_file: ConfigPath | None = None
    """The certificate of both ports, and those that lead to its authority; None encrypts nothing."""
    tls_key_file: ConfigPath | None = None
    """Its key; None looks for it in the certificate's file."""
    tls_client_ca_file: ConfigPath | None = None
    """Authorities that vouch for nodes and operators; None asks them for no certificate."""
    tls_client_auth: Literal["required", "optional"] = "required"
    """Whether who has no certificate is turned away; who has a wrong one always is."""
    insecure_plaintext: bool = False
    """Danger: let tokens travel to other machines readable for who listens on the way."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_connections: Count = 16384
    registration_timeout_seconds: Span = 10.0
    """A connection that has not registered by then is closed (§2)."""
    performance_interval_seconds: Span = 60.0
    """How often the registry logs its own figures (§8)."""

    heartbeat_interval_seconds: Span = _DEFAULTS.heartbeat_interval_seconds
    warmup_heartbeat_interval_seconds: Span = _DEFAULTS.warmup_heartbeat_interval_seconds
    heartbeat_timeout_seconds: Span = _DEFAULTS.heartbeat_timeout_seconds
    warmup_timeout_seconds: Span = _DEFAULTS.warmup_timeout_seconds
    healthy_heartbeats_needed: Count = _DEFAULTS.healthy_heartbeats_needed
    failure_window: Count = _DEFAULTS.failure_window
    failures_in_window: Count = _DEFAULTS.failures_in_window
    consecutive_failures: Count = _DEFAULTS.consecutive_failures
    flap_limit: Count = _DEFAULTS.flap_limit
    flap_window_seconds: Span = _DEFAULTS.flap_window_seconds
    max_heartbeats_per_second: Rate = _DEFAULTS.max_heartbeats_per_second
    scan_interval_seconds: Span = _DEFAULTS.scan_interval_seconds
    node_status_interval_seconds: Span = _DEFAULTS.node_status_interval_seconds
    drain_deadline_seconds: Span = _DEFAULTS.drain_deadline_seconds
    claim_ttl_seconds: Span = _DEFAULTS.claim_ttl_seconds
    default_max_concurrent_jobs: Count = _DEFAULTS.default_max_concurrent_jobs
    min_ready_models: Annotated[int, Field(ge=0)] = _DEFAULTS.min_ready_models
    required_models: Names = _DEFAULTS.required_models
    offline_retention_seconds: Span = _DEFAULTS.offline_retention_seconds
    max_offline_records: Count = _DEFAULTS.max_offline_records
    probe_age_limit_seconds: Span = _DEFAULTS.probe_age_limit_seconds
    max_cpu_percent: Percent = _DEFAULTS.max_cpu_percent
    max_gpu_percent: Percent = _DEFAULTS.max_gpu_percent
    max_memory_percent: Percent = _DEFAULTS.max_memory_percent
    weight_load: Weight = _DEFAULTS.weight_load
    weight_gpu_use: Weight = _DEFAULTS.weight_gpu_use
    weight_free_memory: Weight = _DEFAULTS.weight_free_memory
    weight_round_trip: Weight = _DEFAULTS.weight_round_trip
    affinity_bonus: Weight = _DEFAULTS.affinity_bonus

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.failures_in_window > self.failure_window:
            raise ValueError(
                f"failures_in_window ({self.failures_in_window}) can never be reached in a failure_window of "
                f"{self.failure_window}; make the window larger"
            )
        if self.insecure_no_auth and self.auth == "on" and "auth" in self.model_fields_set:
            raise ValueError("auth is on and insecure_no_auth turns it off: leave one of the two out")
        if self.auth == "off" and not self.insecure_no_auth and self.open_listeners:
            name, address = next(iter(self.open_listeners.items()))
            raise ValueError(
                f"{name} {address} is reached from other machines, and with auth off anybody there could act "
                "as a node or an operator. Leave auth on, or listen on 127.0.0.1, or, on a network where you "
                "trust every machine, use --insecure-no-auth"
            )
        problem = self._tls_problem()
        if problem:
            raise ValueError(problem)
        return self

    def _tls_problem(self) -> str:
        """Say what the settings for TLS want; empty where they agree."""
        if self.tls_cert_file is None:
            for name in ("tls_key_file", "tls_client_ca_file"):
                if getattr(self, name) is not None:
                    return f"{name} is named and tls_cert_file is not: name the certificate of both ports too"
        elif self.insecure_plaintext:
            return (
                "tls_cert_file encrypts both ports and insecure_plaintext does not: leave one of the two out"
            )
        if self.plaintext_listeners and not self.insecure_plaintext:
            name, address = next(iter(self.plaintext_listeners.items()))
            return (
                f"{name} {address} is reached from other machines, and without TLS who listens on the way "
                "reads every token. Name a certificate with --tls-cert-file and --tls-key-file, or listen on "
                "127.0.0.1, or, on a network where you trust every machine, use --insecure-plaintext"
            )
        return ""

    @property
    def auth_on(self) -> bool:
        """Whether tokens are asked for."""
        return self.auth == "on" and not self.insecure_no_auth

    @property
    def open_listeners(self) -> Mapping[str, Address]:
        """The listeners that other machines reach, by the name of their setting."""
        listeners = {"node_listen": self.node_listen, "operator_listen": self.operator_listen}
        return {name: address for name, address in listeners.items() if not address.is_loopback}

    @property
    def plaintext_listeners(self) -> Mapping[str, Address]:
        """Those of them that are not encrypted."""
        return {} if self.tls_cert_file is not None else self.open_listeners

    @property
    def tls_files(self) -> TlsFiles | None:
        """What both ports are encrypted with; None leaves them readable."""
        if self.tls_cert_file is None:
            return None
        return TlsFiles(
            own=OwnCertificate(self.tls_cert_file, self.tls_key_file),
            client_ca_file=self.tls_client_ca_file,
            client_required=self.tls_client_auth == "required",
        )

    @property
    def state_folder(self) -> Path:
        """Where the registry keeps what it writes."""
        return self.state_dir or default_state_dir()

    @property
    def thresholds(self) -> Thresholds:
        """What the fleet judges by."""
        return Thresholds(**{one.name: getattr(self, one.name) for one in fields(Thresholds)})


def load(flags: Mapping[str, object], *, config: Path | None = None) -> RegistrySettings:
    """Read all layers; raises `SettingsError`. Flags that were not given are left out or None."""
    return load_settings(
        RegistrySettings, flags, default=DEFAULT_CONFIG, config=config, sentence=lambda _: None
    )


# What each threshold means, in the words of docs/settings.md, and its unit. Says nothing of its value.


MEANINGS: Mapping[str, str] = {
    "heartbeat_interval_seconds": "how often a settled node beats",
    "warmup_heartbeat_interval_seconds": "how often a registering one does",
    "heartbeat_timeout_seconds": "silence that makes a node offline; never less than three of its intervals",
    "warmup_timeout_seconds": "time to become ready before `degraded`",
    "healthy_heartbeats_needed": "healthy beats in a row that make a node ready",
    "failure_window": "how many of the last beats flapping is judged by",
    "failures_in_window": "unhealthy ones among them that degrade a node",
    "consecutive_failures": "unhealthy beats in a row that degrade a node",
    "flap_limit": "so many exits from `ready` within the flap window keep a node `degraded`",
    "flap_window_seconds": "how long such an exit counts",
    "max_heartbeats_per_second": "the intervals of a large fleet grow so that it beats no oftener",
    "scan_interval_seconds": "how late a timeout may be noticed",
    "node_status_interval_seconds": "how often a node is told its status besides changes",
    "drain_deadline_seconds": "how long a drain waits for jobs",
    "claim_ttl_seconds": "how long a claim lives unless renewed",
    "default_max_concurrent_jobs": "places of a node that states none",
    "min_ready_models": "ready models that a node with models needs",
    "required_models": "models that every node must have ready; in a variable separated by commas",
    "offline_retention_seconds": "how long an offline node, and a token that ended, is remembered",
    "max_offline_records": "with auth off, so many offline nodes are remembered; the oldest go first",
    "probe_age_limit_seconds": "a beat whose GPU reading is older is not healthy",
    "max_cpu_percent": "CPU use above which a node gets no new job",
    "max_gpu_percent": "GPU use above which a node gets no new job",
    "max_memory_percent": "memory use above which a node gets no new job",
    "weight_load": "how much free places count in choosing among able nodes",
    "weight_gpu_use": "how much idle GPUs count",
    "weight_free_memory": "how much free GPU memory counts",
    "weight_round_trip": "how much it counts that a node's network is near",
    "affinity_bonus": "how much it counts that a node last held the job's affinity key",
}

_UNITS = {
    "_per_second": "beats per second",
    "_seconds": "seconds",
    "_percent": "percent",
    "_models": "models",
    "_jobs": "jobs",
    "_records": "records",
    "flap_limit": "exits",
    "weight_load": "points",
    "weight_gpu_use": "points",
    "weight_free_memory": "points",
    "weight_round_trip": "points",
    "affinity_bonus": "points",
}


def unit_of(name: str) -> str:
    """Return the unit in which a threshold is given."""
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "beats")
