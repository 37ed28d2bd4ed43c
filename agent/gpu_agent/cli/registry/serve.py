"""`gpu-agent registry serve`: run the registry until SIGTERM or Ctrl-C."""

import argparse
import asyncio
from dataclasses import fields
from functools import partial
from pathlib import Path

from gpu_agent.cli.command import ExitCode, Failure, describe
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.signals import run_as_first_process
from gpu_agent.server.settings import load

DESCRIPTION = """\
Run the registry: nodes connect to it, it decides their status and gives jobs their places.
Settings come from /etc/gpu-agent/registry.toml (or --config), then GPU_REGISTRY_* variables,
then these options. Times are seconds, fractions welcome. It prints the addresses it listens on
as the event `registry_listening`."""

MEANINGS: dict[str, str] = {
    "heartbeat_interval_seconds": "how often a settled node beats",
    "warmup_heartbeat_interval_seconds": "how often a registering node beats",
    "heartbeat_timeout_seconds": "silence that makes a node offline; never less than three of its intervals",
    "warmup_timeout_seconds": "time to become ready before it counts as degraded",
    "healthy_heartbeats_needed": "healthy beats in a row that make a node ready",
    "failure_window": "how many of the last beats flapping is judged by",
    "failures_in_window": "unhealthy beats in the window that degrade a ready node",
    "consecutive_failures": "unhealthy beats in a row that degrade a ready node",
    "flap_limit": "exits from ready within the flap window that keep a node degraded",
    "flap_window_seconds": "how long such an exit counts",
    "max_heartbeats_per_second": "beats a second that the fleet's intervals grow to stay under",
    "scan_interval_seconds": "how late a timeout may be noticed",
    "node_status_interval_seconds": "how often a node is told its status, besides every change",
    "drain_deadline_seconds": "how long a drain waits for jobs unless told otherwise",
    "claim_ttl_seconds": "how long a claim lives unless it is renewed",
    "default_max_concurrent_jobs": "places of a node that states none",
    "min_ready_models": "ready models that a node with models needs",
    "required_models": "models that every node must have ready, separated by commas",
    "offline_retention_seconds": "how long an offline node, and a token that ended, is remembered",
    "max_offline_records": "with auth off, so many offline nodes are remembered; the oldest go first",
    "probe_age_limit_seconds": "a beat whose GPU reading is older is unhealthy",
    "max_cpu_percent": "CPU load above which a node gets no new job",
    "max_gpu_percent": "GPU load above which a node gets no new job",
    "max_memory_percent": "memory use above which a node gets no new job",
    "weight_load": "what a node scores for free places, all of them",
    "weight_gpu_use": "what it scores for GPUs that are idle",
    "weight_free_memory": "what it scores for GPU memory that is free",
    "weight_round_trip": "what it scores for a network that is near",
    "affinity_bonus": "what it scores besides for having last held the job's affinity key",
}
"""One line for each threshold; a test keeps the two lists the same."""


def configure_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; what is not given is left to the other layers."""
    describe(
        parser,
        DESCRIPTION,
        example="gpu-agent registry serve --node-listen 10.0.0.1:8080 --tls-cert-file own.pem",
        exits={
            ExitCode.OK: "asked to stop, said goodbye to all nodes and left",
            ExitCode.FAILED: "it could not start, or broke; the log says why",
            ExitCode.CONFIGURATION: "wrong settings, or the extra [registry] is not installed",
        },
        asks=False,
    )
    listen = parser.add_argument_group("where")
    listen.add_argument(
        "--node-listen", metavar="HOST:PORT", help="where nodes connect (default 127.0.0.1:8080)"
    )
    listen.add_argument(
        "--operator-listen", metavar="HOST:PORT", help="the operators' HTTP API (default 127.0.0.1:8081)"
    )
    listen.add_argument(
        "--store",
        metavar="STORE",
        help="what keeps the registry's state: sqlite (default: a file in the state directory), "
        "sqlite:///PATH, or memory, which forgets it at a restart",
    )
    listen.add_argument(
        "--state-dir", metavar="DIR", help="what the registry writes (default: the platform's place)"
    )
    listen.add_argument(
        "--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"
    )
    listen.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), help="how much to log (default info)"
    )
    whom = parser.add_argument_group("whom")
    whom.add_argument(
        "--allow-simulated", action="store_true", default=None, help="let simulated nodes register"
    )
    whom.add_argument(
        "--auth",
        choices=("on", "off"),
        help="ask nodes and operators for tokens (default on); off only while both ports are on loopback",
    )
    whom.add_argument(
        "--insecure-no-auth",
        action="store_true",
        default=None,
        help="DANGER: ask for no tokens on any address: whoever gets there may act as any node or operator",
    )
    _add_encryption(parser)
    thresholds = parser.add_argument_group("thresholds")
    for one in fields(Thresholds):
        default = ",".join(one.default) if isinstance(one.default, tuple) else f"{one.default:g}"
        thresholds.add_argument(
            f"--{one.name.replace('_', '-')}",
            metavar="N",
            help=f"{MEANINGS[one.name]} (default {default or 'none'})",
        )


def _add_encryption(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("encrypted, on both ports")
    for option, meaning in (
        ("--tls-cert-file", "the certificate, and behind it those that lead to its authority (PEM)"),
        ("--tls-key-file", "its key (default: in the certificate's file); nobody else may read it"),
        ("--tls-client-ca-file", "ask nodes and operators for a certificate of these authorities"),
    ):
        how.add_argument(option, metavar="FILE", help=meaning)
    how.add_argument(
        "--tls-client-auth",
        choices=("required", "optional"),
        help="whether who has no certificate is turned away (default required)",
    )
    how.add_argument(
        "--insecure-plaintext",
        action="store_true",
        default=None,
        help="DANGER: listen beyond this machine without TLS: who listens on the way can take every token",
    )


def run_serve(arguments: argparse.Namespace) -> int:
    """Load the settings and serve."""
    flags = {name: value for name, value in vars(arguments).items() if name != "config"}
    read = partial(load, flags, config=arguments.config)
    try:
        settings = read()
    except SettingsError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None
    try:
        from gpu_agent.server.serve import serve
    except ModuleNotFoundError as missing:
        raise Failure(
            f"the registry needs the package {missing.name}, which the base install leaves out: "
            "pip install 'gpu-agent[registry]'",
            code=ExitCode.CONFIGURATION,
        ) from None
    return run_as_first_process(lambda: int(asyncio.run(serve(settings, read))))
