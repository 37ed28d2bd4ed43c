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
from gpu_agent.runtime.config.fields import ConfigPath, Setting, setting_of
from gpu_agent.runtime.config.load import load_settings
from gpu_agent.runtime.config.sources import NESTED
from gpu_agent.runtime.state_dir import default_state_dir
from gpu_agent.runtime.tls.contexts import OwnCertificate
from gpu_agent.server.address import Address
from gpu_agent.server.storage import SQLITE, STORE_FORMS, check_location
from gpu_agent.server.tls import TlsFiles

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
    """All settings of `registry serve`. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=NESTED
    )

    node_listen: Annotated[
        Listen,
        Setting(
            "the address for nodes; `0.0.0.0:8080` is every IPv4 address of this machine, `[::]:8080` every "
            "IPv6 one",
            kind="host:port",
            option="--node-listen",
            metavar="HOST:PORT",
        ),
    ] = Address("127.0.0.1", 8080)
    operator_listen: Annotated[
        Listen,
        Setting(
            "the address of the operators' HTTP API",
            kind="host:port",
            option="--operator-listen",
            metavar="HOST:PORT",
        ),
    ] = Address("127.0.0.1", 8081)
    store: Annotated[
        StoreLocation,
        Setting(
            "where the registry stores its state: the file `registry.db` in the state directory, another "
            "file, or memory, which loses it at a restart",
            kind=STORE_FORMS,
            option="--store",
            metavar="STORE",
        ),
    ] = SQLITE
    state_dir: Annotated[
        ConfigPath | None,
        Setting(
            "the directory that the registry writes to; else the platform's place for a user's state. Only "
            "its owner may enter it",
            example='"/var/lib/gpu-registry"',
            option="--state-dir",
            metavar="DIR",
        ),
    ] = None
    allow_simulated: Annotated[
        bool, Setting("whether simulated nodes may register", option="--allow-simulated")
    ] = False
    auth: Annotated[
        Literal["on", "off"],
        Setting(
            "whether nodes and operators must present tokens; off is refused unless both ports are on "
            "loopback",
            option="--auth",
        ),
    ] = "on"
    insecure_no_auth: Annotated[
        bool,
        Setting(
            "danger: auth is off on any address: everybody who reaches the ports may act as any node or "
            "operator",
            option="--insecure-no-auth",
        ),
    ] = False
    tls_cert_file: Annotated[
        ConfigPath | None,
        Setting(
            "the certificate of both ports in PEM, followed by those that lead to its authority; without it "
            "nothing is encrypted (`docs/security.md`)",
            example='"/etc/gpu-agent/registry.pem"',
            option="--tls-cert-file",
            metavar="FILE",
        ),
    ] = None
    tls_key_file: Annotated[
        ConfigPath | None,
        Setting(
            "the key of that certificate, which no other user may read; else the key is in the "
            "certificate's file",
            example='"/etc/gpu-agent/registry.key"',
            option="--tls-key-file",
            metavar="FILE",
        ),
    ] = None
    tls_client_ca_file: Annotated[
        ConfigPath | None,
        Setting(
            "authorities: nodes and operators must show a certificate of one of them, besides their tokens",
            example='"/etc/gpu-agent/client-ca.pem"',
            option="--tls-client-ca-file",
            metavar="FILE",
        ),
    ] = None
    tls_client_auth: Annotated[
        Literal["required", "optional"],
        Setting(
            "`optional` also accepts clients without a certificate; a wrong one is always refused",
            option="--tls-client-auth",
        ),
    ] = "required"
    insecure_plaintext: Annotated[
        bool,
        Setting(
            "danger: listen beyond loopback without TLS: everybody on the network path can read every token",
            option="--insecure-plaintext",
        ),
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Setting("the lowest level that is logged, to stderr", option="--log-level"),
    ] = "info"
    max_connections: Annotated[
        Count, Setting("the most node connections; further nodes are asked to try again later", advanced=True)
    ] = 16384
    registration_timeout_seconds: Annotated[
        Span, Setting("a connection that has not registered after this time is closed", advanced=True)
    ] = 10.0
    performance_interval_seconds: Annotated[
        Span, Setting("how often the registry logs its own figures (`performance`)", advanced=True)
    ] = 60.0

    heartbeat_interval_seconds: Annotated[
        Span, Setting("time between two heartbeats of a settled node", option="--heartbeat-interval-seconds")
    ] = _DEFAULTS.heartbeat_interval_seconds
    warmup_heartbeat_interval_seconds: Annotated[
        Span,
        Setting(
            "time between two heartbeats of a registering node", option="--warmup-heartbeat-interval-seconds"
        ),
    ] = _DEFAULTS.warmup_heartbeat_interval_seconds
    heartbeat_timeout_seconds: Annotated[
        Span,
        Setting(
            "a node without a heartbeat for this long is offline; never less than three of its intervals",
            option="--heartbeat-timeout-seconds",
        ),
    ] = _DEFAULTS.heartbeat_timeout_seconds
    warmup_timeout_seconds: Annotated[
        Span,
        Setting(
            "a registering node that is not ready after this time becomes `degraded`",
            option="--warmup-timeout-seconds",
        ),
    ] = _DEFAULTS.warmup_timeout_seconds
    healthy_heartbeats_needed: Annotated[
        Count, Setting("healthy heartbeats in a row that make a node ready", kind="heartbeats", advanced=True)
    ] = _DEFAULTS.healthy_heartbeats_needed
    failure_window: Annotated[
        Count,
        Setting(
            "the number of last heartbeats among which failures are counted", kind="heartbeats", advanced=True
        ),
    ] = _DEFAULTS.failure_window
    failures_in_window: Annotated[
        Count,
        Setting(
            "unhealthy heartbeats among these that make a node `degraded`",
            kind="heartbeats, at most the window",
            advanced=True,
        ),
    ] = _DEFAULTS.failures_in_window
    consecutive_failures: Annotated[
        Count,
        Setting(
            "unhealthy heartbeats in a row that make a node `degraded`", kind="heartbeats", advanced=True
        ),
    ] = _DEFAULTS.consecutive_failures
    flap_limit: Annotated[
        Count,
        Setting(
            "a node that has left `ready` this often within the flap window stays `degraded`",
            kind="exits",
            advanced=True,
        ),
    ] = _DEFAULTS.flap_limit
    flap_window_seconds: Annotated[Span, Setting("how long such an exit counts", advanced=True)] = (
        _DEFAULTS.flap_window_seconds
    )
    max_heartbeats_per_second: Annotated[
        Rate,
        Setting(
            "the intervals of a large fleet grow so that all nodes together send no more heartbeats than "
            "this",
            kind="heartbeats per second",
            advanced=True,
        ),
    ] = _DEFAULTS.max_heartbeats_per_second
    scan_interval_seconds: Annotated[Span, Setting("how late a timeout may be noticed", advanced=True)] = (
        _DEFAULTS.scan_interval_seconds
    )
    node_status_interval_seconds: Annotated[
        Span, Setting("how often a node receives its status, besides every change", advanced=True)
    ] = _DEFAULTS.node_status_interval_seconds
    drain_deadline_seconds: Annotated[
        Span,
        Setting(
            "how long a drain waits for jobs unless it states a deadline", option="--drain-deadline-seconds"
        ),
    ] = _DEFAULTS.drain_deadline_seconds
    claim_ttl_seconds: Annotated[
        Span, Setting("a claim that is not renewed expires after this time", option="--claim-ttl-seconds")
    ] = _DEFAULTS.claim_ttl_seconds
    default_max_concurrent_jobs: Annotated[
        Count,
        Setting("slots of a node that states none", option="--default-max-concurrent-jobs"),
    ] = _DEFAULTS.default_max_concurrent_jobs
    min_ready_models: Annotated[
        int, Field(ge=0), Setting("ready models that a node with models needs", kind="models", advanced=True)
    ] = _DEFAULTS.min_ready_models
    required_models: Annotated[
        Names,
        Setting(
            "models that every node must have ready; separated by commas in a variable",
            option="--required-models",
            metavar="NAMES",
        ),
    ] = _DEFAULTS.required_models
    offline_retention_seconds: Annotated[
        Span,
        Setting("an offline node, and a token that ended, is deleted after this time", advanced=True),
    ] = _DEFAULTS.offline_retention_seconds
    max_offline_records: Annotated[
        Count,
        Setting(
            "with auth off, the most offline nodes that are stored; the oldest are deleted first",
            kind="records",
            advanced=True,
        ),
    ] = _DEFAULTS.max_offline_records
    probe_age_limit_seconds: Annotated[
        Span, Setting("a heartbeat with an older GPU reading is unhealthy", advanced=True)
    ] = _DEFAULTS.probe_age_limit_seconds
    max_cpu_percent: Annotated[
        Percent, Setting("CPU use above which a node receives no new job", option="--max-cpu-percent")
    ] = _DEFAULTS.max_cpu_percent
    max_gpu_percent: Annotated[
        Percent, Setting("GPU use above which a node receives no new job", option="--max-gpu-percent")
    ] = _DEFAULTS.max_gpu_percent
    max_memory_percent: Annotated[
        Percent, Setting("memory use above which a node receives no new job", option="--max-memory-percent")
    ] = _DEFAULTS.max_memory_percent
    weight_load: Annotated[
        Weight,
        Setting(
            "points for free slots, all of them, when eligible nodes are compared",
            kind="points",
            advanced=True,
        ),
    ] = _DEFAULTS.weight_load
    weight_gpu_use: Annotated[Weight, Setting("points for idle GPUs", kind="points", advanced=True)] = (
        _DEFAULTS.weight_gpu_use
    )
    weight_free_memory: Annotated[
        Weight, Setting("points for free GPU memory", kind="points", advanced=True)
    ] = _DEFAULTS.weight_free_memory
    weight_round_trip: Annotated[
        Weight, Setting("points for a short network round trip", kind="points", advanced=True)
    ] = _DEFAULTS.weight_round_trip
    affinity_bonus: Annotated[
        Weight,
        Setting(
            "points for the node that last ran a job with the same affinity key", kind="points", advanced=True
        ),
    ] = _DEFAULTS.affinity_bonus

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
                f"{name} {address} is reached from other machines, and with auth off any of them could act "
                "as a node or an operator. Leave auth on, or listen on 127.0.0.1, or, on a network where you "
                "trust every machine, use --insecure-no-auth"
            )
        problem = self._tls_problem()
        if problem:
            raise ValueError(problem)
        return self

    def _tls_problem(self) -> str:
        """Return what is wrong with the TLS settings, and the next step; empty where they agree."""
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
                f"{name} {address} is reached from other machines, and without TLS everybody on the "
                "network path reads every token. Name a certificate with --tls-cert-file and --tls-key-file, "
                "or listen on 127.0.0.1, or, on a network where you trust every machine, use "
                "--insecure-plaintext"
            )
        return ""

    @property
    def auth_on(self) -> bool:
        """Whether tokens are required."""
        return self.auth == "on" and not self.insecure_no_auth

    @property
    def open_listeners(self) -> Mapping[str, Address]:
        """The listeners that other machines reach, by the name of their setting."""
        listeners = {"node_listen": self.node_listen, "operator_listen": self.operator_listen}
        return {name: address for name, address in listeners.items() if not address.is_loopback}

    @property
    def plaintext_listeners(self) -> Mapping[str, Address]:
        """The listeners that other machines reach without encryption."""
        return {} if self.tls_cert_file is not None else self.open_listeners

    @property
    def tls_files(self) -> TlsFiles | None:
        """The certificate files of both ports; None without TLS."""
        if self.tls_cert_file is None:
            return None
        return TlsFiles(
            own=OwnCertificate(self.tls_cert_file, self.tls_key_file),
            client_ca_file=self.tls_client_ca_file,
            client_required=self.tls_client_auth == "required",
        )

    @property
    def state_folder(self) -> Path:
        """The directory that the registry writes to."""
        return self.state_dir or default_state_dir()

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds by which the fleet decides."""
        return Thresholds(**{one.name: getattr(self, one.name) for one in fields(Thresholds)})


def load(flags: Mapping[str, object], *, config: Path | None = None) -> RegistrySettings:
    """Load all sources; raises `SettingsError`. Flags that were not given are absent or None."""
    return load_settings(
        RegistrySettings, flags, default=DEFAULT_CONFIG, config=config, sentence=lambda _: None
    )


_UNITS = {"_seconds": "seconds", "_percent": "percent", "_models": "models", "_jobs": "jobs"}


def threshold_meaning(name: str) -> str:
    """Return what a threshold means."""
    return setting_of(RegistrySettings.model_fields[name]).meaning


def unit_of(name: str, kind: str | None) -> str:
    """Return the unit of a threshold, from its `Setting.kind` or its name; raises `TypeError` without one."""
    if kind is not None:
        return kind.partition(",")[0]
    for end, unit in _UNITS.items():
        if name.endswith(end):
            return unit
    raise TypeError(
        f"the setting {name} of RegistrySettings has no unit: state it with Setting(kind=...), or end its "
        f"name in one of {', '.join(_UNITS)}"
    )


THRESHOLD_UNITS: Mapping[str, str] = {
    one.name: unit_of(one.name, setting_of(RegistrySettings.model_fields[one.name]).kind)
    for one in fields(Thresholds)
}
"""The unit of each threshold; made at import, so that no release serves a threshold without one."""
