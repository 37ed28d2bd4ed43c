"""What a job demands, as options of a command: one for each field of a job that a person states."""

import shlex
from collections.abc import Mapping

import click

from gpu_agent.cli.client.http import without_none
from gpu_agent.cli.command import Arguments, capability, label_pair, positive_number, whole_number
from gpu_agent.cli.declaration import OWN, option
from gpu_agent.cli.output.units import duration_between

_OPTIONS = {
    "required_models": "--model",
    "required_features": "--feature",
    "public": "--public",
    "gpu_count": "--gpus",
    "gpu_sharing": "--gpu-sharing",
    "gpu_name": "--gpu-name",
    "min_gpu_memory_mb": "--min-gpu-memory-mb",
    "min_compute_capability": "--min-compute-capability",
    "labels": "--label",
    "allowed_nodes": "--node",
    "excluded_nodes": "--exclude-node",
    "nodes": "--nodes",
    "affinity_key": "--affinity",
    "priority": "--priority",
}
"""Each option, by the field of a request that it states."""
_DEMANDS, _LIFE = "what the job demands", "the claim's life"


def job_options() -> list[click.Parameter]:
    """Return one option for each demand that a job may state (node protocol §5)."""
    return [
        option(
            "--model",
            metavar="M",
            help="a required model (repeatable)",
            repeatable=True,
            subject=_DEMANDS,
        ),
        option(
            "--feature",
            metavar="F",
            help="a required feature (repeatable)",
            repeatable=True,
            subject=_DEMANDS,
        ),
        option("--public", help="a job of the public pool", flag=True, subject=_DEMANDS),
        *_gpu_options(subject=_DEMANDS),
        option(
            "--label",
            type=label_pair,
            metavar="K=V",
            help="a required label; the same one again: another value that will do (repeatable)",
            repeatable=True,
            subject=_DEMANDS,
        ),
        option(
            "--node",
            metavar="ID",
            help="only on these nodes (repeatable)",
            repeatable=True,
            subject=_DEMANDS,
        ),
        option(
            "--exclude-node",
            metavar="ID",
            help="on none of these (repeatable)",
            repeatable=True,
            subject=_DEMANDS,
        ),
        option(
            "--nodes",
            type=positive_number,
            metavar="K",
            help="so many different nodes, all or none (default 1)",
            subject=_DEMANDS,
        ),
        option(
            "--affinity",
            metavar="KEY",
            help="prefer the node that last had a job with this key",
            subject=_DEMANDS,
        ),
        option(
            "--priority",
            type=whole_number,
            metavar="N",
            help="the job's priority, -100 to 100 (default 0)",
            subject=_DEMANDS,
        ),
    ]


def _gpu_options(*, subject: str) -> list[click.Parameter]:
    return [
        option(
            "--gpus",
            type=positive_number,
            metavar="N",
            help="so many GPUs of each node (default: none, a worker on the node serves the job)",
            subject=subject,
        ),
        option(
            "--gpu-sharing",
            choices=("exclusive", "memory"),
            help="whole GPUs, or GPUs shared while their free memory suffices (default: exclusive; memory "
            "where "
            "only --min-gpu-memory-mb is given)",
            subject=subject,
        ),
        option("--gpu-name", metavar="NAME", help="part of the GPU's name", subject=subject),
        option(
            "--min-gpu-memory-mb",
            type=positive_number,
            metavar="MB",
            help="memory of each GPU in MiB: in all, or with sharing by memory what must be free",
            subject=subject,
        ),
        option(
            "--min-compute-capability",
            type=capability,
            metavar="X.Y",
            help="the lowest CUDA compute capability of each GPU, such as 8.0",
            subject=subject,
        ),
    ]


def life_options() -> list[click.Parameter]:
    """Return how long a claim lives, and how long the job may wait for it."""
    return [
        *ttl_option(subject=_LIFE),
        option(
            "--wait",
            type=duration_between("0s", "5m"),
            metavar="DURATION",
            help="wait so long in the queue where no node can take the job now, at most 5m",
            subject=_LIFE,
        ),
    ]


def ttl_option(*, subject: str = OWN) -> list[click.Parameter]:
    """Return how long a claim lives without a renewal."""
    return [
        option(
            "--ttl",
            type=duration_between("10s", "24h"),
            metavar="DURATION",
            help="until it expires unless renewed, such as 90s or 2h; 10s to 24h (default: the registry's)",
            subject=subject,
        )
    ]


def job_request(arguments: Arguments) -> dict[str, object]:
    """Return the job's demands as the API reads them; an option that was not given is left out."""
    job: dict[str, object] = {
        "required_models": arguments.model,
        "required_features": arguments.feature,
        "public": arguments.public or None,
        "gpu_count": arguments.gpus,
        "gpu_sharing": arguments.gpu_sharing,
        "gpu_name": arguments.gpu_name,
        "min_gpu_memory_mb": arguments.min_gpu_memory_mb,
        "min_compute_capability": arguments.min_compute_capability,
        "labels": _labels(arguments.label),
        "allowed_nodes": arguments.node,
        "excluded_nodes": arguments.exclude_node,
        "nodes": arguments.nodes,
        "affinity_key": arguments.affinity,
        "priority": arguments.priority,
    }
    return {name: value for name, value in job.items() if value not in (None, [], {})}


def job_words(job: Mapping[str, object]) -> str:
    """Return the demands of a request as the options that state them."""
    words: list[str] = []
    for name, typed in _OPTIONS.items():
        value = job.get(name)
        if value is True:
            words.append(typed)
        elif isinstance(value, Mapping):
            values = [(key, one if isinstance(one, list) else [one]) for key, one in value.items()]
            words += [word for key, some in values for one in some for word in (typed, f"{key}={one}")]
        elif value is not None:
            some = value if isinstance(value, list) else [value]
            words += [word for one in some for word in (typed, str(one))]
    return shlex.join(words)


def life_request(arguments: Arguments) -> dict[str, object]:
    """Return how long the claim lives and the job may wait, as the API reads it."""
    return without_none(ttl_seconds=arguments.ttl, wait_seconds=arguments.wait)


def _labels(pairs: list[tuple[str, str]]) -> dict[str, str | list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: some[0] if len(some) == 1 else some for name, some in values.items()}
