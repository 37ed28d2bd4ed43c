"""The registry's settings: defaults ← file ← `GPU_REGISTRY_*` ← flags, checked, then frozen.

Thresholds have the names of §4 of the node protocol, in the file as in the environment and the flags.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpu_agent.registry.settings import Count, Span, Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.fields import ConfigPath, Listen, setting_of
from gpu_agent.runtime.config.load import fault_text, load_settings, setting_name
from gpu_agent.runtime.config.sources import NESTED
from gpu_agent.runtime.state_dir import default_state_dir
from gpu_agent.runtime.tls.contexts import OwnCertificate
from gpu_agent.server.notify.settings import Receivers, is_plaintext
from gpu_agent.server.storage import (
    SQLITE,
    STORE_FORMS,
    STORE_MEANINGS,
    EtcdLocation,
    EtcdSecurity,
    check_location,
    parse_location,
)
from gpu_agent.server.tls import TlsFiles
from gpu_agent.wire.settings import Setting

DEFAULT_CONFIG = Path("/etc/gpu-agent/registry.toml")
MOST_GATEWAYS = 64
ENVIRONMENT_PREFIX = "GPU_REGISTRY_"
_NODE_LISTEN, _OPERATOR_LISTEN = Address("127.0.0.1", 8080), Address("127.0.0.1", 8081)
_INSTANCE_LISTEN = Address("127.0.0.1", 8082)


StoreLocation = Annotated[str, AfterValidator(check_location)]


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """What is no threshold: where the registry listens, what it stores, whom it trusts."""

    node_listen: Annotated[
        Listen,
        Setting(
            "the address for nodes; `0.0.0.0:8080` is every IPv4 address of this machine, `[::]:8080` every "
            "IPv6 one",
            kind="host:port",
            option="--node-listen",
            metavar="HOST:PORT",
        ),
    ] = _NODE_LISTEN
    operator_listen: Annotated[
        Listen,
        Setting(
            "the address of the operators' HTTP API",
            kind="host:port",
            option="--operator-listen",
            metavar="HOST:PORT",
        ),
    ] = _OPERATOR_LISTEN
    store: Annotated[
        StoreLocation,
        Setting(
            f"where the registry stores its state: {STORE_MEANINGS}",
            kind=STORE_FORMS,
            option="--store",
            metavar="STORE",
        ),
    ] = SQLITE
    gateways: Annotated[
        int,
        Field(ge=0, le=MOST_GATEWAYS),
        Setting(
            "how many processes besides this one hold the node connections, so that these spread over cores; "
            "with 0 this one holds them (see *Scale* in the documentation)",
            kind="processes",
            option="--gateways",
            metavar="N",
        ),
    ] = 0
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
    etcd_ca_file: Annotated[
        ConfigPath | None,
        Setting(
            "authorities that issued the certificates of etcd's members; without it and `etcd_cert_file` "
            "nothing to etcd is encrypted",
            example='"/etc/gpu-agent/etcd-ca.pem"',
            option="--etcd-ca-file",
            metavar="FILE",
        ),
    ] = None
    etcd_cert_file: Annotated[
        ConfigPath | None,
        Setting(
            "the certificate in PEM by which etcd's members know this registry",
            example='"/etc/gpu-agent/etcd.pem"',
            option="--etcd-cert-file",
            metavar="FILE",
        ),
    ] = None
    etcd_key_file: Annotated[
        ConfigPath | None,
        Setting(
            "the key of that certificate, which no other user may read; else the key is in the "
            "certificate's file",
            example='"/etc/gpu-agent/etcd.key"',
            option="--etcd-key-file",
            metavar="FILE",
        ),
    ] = None
    etcd_user: Annotated[
        str | None,
        Setting(
            "the user of etcd; its role must allow it to read and write the keys below the prefix",
            example='"gpu-registry"',
            option="--etcd-user",
            metavar="NAME",
        ),
    ] = None
    etcd_password_file: Annotated[
        ConfigPath | None,
        Setting(
            "holds that user's password; no other user may read it",
            example='"/etc/gpu-agent/etcd.password"',
            option="--etcd-password-file",
            metavar="FILE",
        ),
    ] = None
    instance_name: Annotated[
        str,
        Setting(
            "what this instance is called among those on the same etcd; else the machine's name "
            "(*A registry on three machines* in the documentation shows all that an instance needs)",
            kind="name",
            example='"registry-1"',
            option="--instance-name",
            metavar="NAME",
        ),
    ] = ""
    instance_listen: Annotated[
        Listen,
        Setting(
            "where this instance, while it leads, accepts the links of the others on the same etcd "
            "(see *Scale* in the documentation): an address that they reach",
            kind="host:port",
            option="--instance-listen",
            metavar="HOST:PORT",
        ),
    ] = _INSTANCE_LISTEN
    instance_ca_file: Annotated[
        ConfigPath | None,
        Setting(
            "the authority of the instances' own certificates: each must show one of it to the others",
            example='"/etc/gpu-agent/instances-ca.pem"',
            option="--instance-ca-file",
            metavar="FILE",
        ),
    ] = None
    instance_cert_file: Annotated[
        ConfigPath | None,
        Setting(
            "the certificate in PEM by which the other instances know this one, also as a client",
            example='"/etc/gpu-agent/instance.pem"',
            option="--instance-cert-file",
            metavar="FILE",
        ),
    ] = None
    instance_key_file: Annotated[
        ConfigPath | None,
        Setting(
            "the key of that certificate, which no other user may read; else the key is in the "
            "certificate's file",
            example='"/etc/gpu-agent/instance.key"',
            option="--instance-key-file",
            metavar="FILE",
        ),
    ] = None
    allow_simulated: Annotated[
        bool, Setting("whether simulated nodes may register", option="--allow-simulated")
    ] = False
    auth: Annotated[
        Literal["on", "off"],
        Setting(
            "whether nodes and operators must present tokens; off is refused unless both ports are on "
            "loopback; the same for all instances of one registry",
            option="--auth",
        ),
    ] = "on"
    insecure_no_auth: Annotated[
        bool,
        Setting(
            "danger: auth is off on any address: anyone who reaches the ports may act as any node or "
            "operator",
            option="--insecure-no-auth",
        ),
    ] = False
    tls_cert_file: Annotated[
        ConfigPath | None,
        Setting(
            "the certificate of both ports in PEM, followed by those that lead to its authority; without it "
            "nothing is encrypted (see *Encrypt it* in the documentation)",
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
            "danger: listen beyond loopback, and use etcd there, without TLS: anyone on the network path "
            "can read every token",
            option="--insecure-plaintext",
        ),
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Setting("the lowest level that is logged, to stderr", option="--log-level", reload=True),
    ] = "info"
    notify: Annotated[
        Receivers,
        Setting(
            "the receivers of alarms, see below (see *Alarms* in the documentation)",
            kind="list of tables",
            example='name = "ops"\nurl_file = "/etc/gpu-agent/slack.url"\nformat = "slack"',
            reload=True,
        ),
    ] = ()
    max_connections: Annotated[
        Count, Setting("the most node connections; further nodes are asked to try again later", advanced=True)
    ] = 16384
    registration_timeout_seconds: Annotated[
        Span, Setting("a connection that has not registered after this time is closed", advanced=True)
    ] = 10.0
    performance_interval_seconds: Annotated[
        Span,
        Setting("how often the registry logs its own figures (`performance`)", advanced=True, reload=True),
    ] = 60.0


class RegistrySettings(BaseSettings, Thresholds, _Serving):
    """All settings of `registry serve`, with the thresholds of `registry.settings`. Times are seconds."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter=NESTED,
        enable_decoding=False,
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.failures_in_window > self.failure_window:
            raise ValueError(
                f"failures_in_window ({self.failures_in_window}) can never be reached in a failure_window of "
                f"{self.failure_window}; make the window larger"
            )
        if self.gateways and sys.platform == "win32":
            raise ValueError("gateways need a system that shares ports, which Windows does not: leave it out")
        if self.insecure_no_auth and self.auth == "on" and "auth" in self.model_fields_set:
            raise ValueError("auth is on and insecure_no_auth turns it off: leave one of the two out")
        if self.auth == "off" and not self.insecure_no_auth and self.open_listeners:
            name, address = next(iter(self.open_listeners.items()))
            raise ValueError(
                f"{name} {address} is reached from other machines, and with auth off any of them could act "
                "as a node or an operator. Leave auth on, or listen on 127.0.0.1, or, on a network where you "
                "trust every machine, use --insecure-no-auth"
            )
        problem = (
            self._tls_problem() or self._etcd_problem() or self._instance_problem() or self._notify_problem()
        )
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

    def _etcd_problem(self) -> str:
        """Return what is wrong with the settings for etcd, and the next step; empty where they agree."""
        location = parse_location(self.store, Path())
        if not isinstance(location, EtcdLocation):
            return ""
        if self.etcd_key_file is not None and self.etcd_cert_file is None:
            return "etcd_key_file is named and etcd_cert_file is not: name the certificate too"
        if (self.etcd_user is None) != (self.etcd_password_file is None):
            return "of etcd_user and etcd_password_file one is named: name both, or none"
        open_members = [str(one) for one in location.members if not one.is_loopback]
        if open_members and not self.etcd_security.encrypted and not self.insecure_plaintext:
            return (
                f"etcd's member {open_members[0]} is on another machine, and without TLS everybody on the "
                "network path can read and change all that is stored. Name the authority of its certificate "
                "with --etcd-ca-file, or, on a network where you trust every machine, use "
                "--insecure-plaintext"
            )
        return ""

    def _instance_problem(self) -> str:
        """Return what is wrong with an instance's settings, and the next step; empty where they agree."""
        if not isinstance(parse_location(self.store, Path()), EtcdLocation):
            return ""
        if self.gateways:
            return (
                "gateways is for a registry on one machine: on etcd each instance is a gateway itself; leave "
                "it out, and start an instance more"
            )
        if not self.instance_listen.port:
            return f"instance_listen {self.instance_listen} names no port: the other instances must know it"
        if self.instance_listen.is_wildcard:
            return (
                f"instance_listen {self.instance_listen} is every address of this machine: name the one that "
                "the other instances reach"
            )
        if self.operator_listen.is_loopback and not self.instance_listen.is_loopback:
            return (
                f"operator_listen {self.operator_listen} is reached from this machine alone, and the other "
                "instances forward requests to it while this one leads: name an address that they reach"
            )
        if (self.instance_ca_file is None) != (self.instance_cert_file is None):
            return "of instance_ca_file and instance_cert_file one is named: name both, or none"
        if self.instance_ca_file is None and not (
            self.instance_listen.is_loopback or self.insecure_plaintext
        ):
            return (
                f"instance_listen {self.instance_listen} is reached from other machines, and without TLS "
                "anyone on the network path can act as an instance. Name the instances' own authority and "
                "certificate with --instance-ca-file and --instance-cert-file, or, on a network where you "
                "trust every machine, use --insecure-plaintext"
            )
        return ""

    def _notify_problem(self) -> str:
        """Return which receiver's messages others could read, and the next step; empty where none."""
        for one in self.notify:
            if one.url is not None and is_plaintext(one.url) and not self.insecure_plaintext:
                return (
                    f"the url of the receiver {one.name} begins with http://, and everybody on the network "
                    "path reads its alarms: write https://, or, on a network where you trust every machine, "
                    "use --insecure-plaintext"
                )
        return ""

    @property
    def etcd_security(self) -> EtcdSecurity:
        """How the registry and etcd prove themselves to each other."""
        cert = self.etcd_cert_file
        return EtcdSecurity(
            ca_file=self.etcd_ca_file,
            own=None if cert is None else OwnCertificate(cert, self.etcd_key_file),
            user=self.etcd_user,
            password_file=self.etcd_password_file,
        )

    @property
    def instance_certificate(self) -> OwnCertificate | None:
        """What this instance shows to the others; None without TLS between them."""
        cert = self.instance_cert_file
        return None if cert is None else OwnCertificate(cert, self.instance_key_file)

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
    return load_settings(RegistrySettings, flags, default=DEFAULT_CONFIG, config=config, sentence=_sentence)


def _sentence(error: ErrorDetails) -> str | None:
    """Show no value of a receiver: a URL may be a secret."""
    if not error["loc"] or error["loc"][0] != "notify" or error["type"] == "extra_forbidden":
        return None
    return f"{setting_name(error)}: {fault_text(error)}"


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
