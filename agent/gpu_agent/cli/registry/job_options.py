"""What a job demands, as options of a command: one for each field of a job that a person states."""

import argparse
import shlex
from collections.abc import Mapping

from gpu_agent.cli.client.http import without_none
from gpu_agent.cli.command import capability, label_pair, positive_number, whole_number
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
"""By the field of a request that it states."""


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add one option for each demand that a job may state (node protocol §5)."""
    demands = parser.add_argument_group("what the job demands")
    demands.add_argument(
        "--model", action="append", default=[], metavar="M", help="a required model (repeatable)"
    )
    demands.add_argument(
        "--feature", action="append", default=[], metavar="F", help="a required feature (repeatable)"
    )
    demands.add_argument("--public", action="store_true", help="a job of the public pool")
    _add_gpu_options(demands)
    demands.add_argument(
        "--label",
        action="append",
        type=label_pair,
        default=[],
        metavar="K=V",
        help="a required label; the same one again: another value that will do (repeatable)",
    )
    demands.add_argument(
        "--node", action="append", default=None, metavar="ID", help="only on these nodes (repeatable)"
    )
    demands.add_argument(
        "--exclude-node", action="append", default=[], metavar="ID", help="on none of these (repeatable)"
    )
    demands.add_argument(
        "--nodes", type=positive_number, metavar="K", help="so many different nodes, all or none (default 1)"
    )
    demands.add_argument(
        "--affinity", metavar="KEY", help="prefer the node that last had a job with this key"
    )
    demands.add_argument(
        "--priority", type=whole_number, metavar="N", help="the job's priority, -100 to 100 (default 0)"
    )


def _add_gpu_options(demands: argparse._ArgumentGroup) -> None:
    demands.add_argument(
        "--gpus",
        type=positive_number,
        metavar="N",
        help="so many GPUs of each node (default: none, a worker on the node serves the job)",
    )
    demands.add_argument(
        "--gpu-sharing",
        choices=("exclusive", "memory"),
        help="whole GPUs, or GPUs shared while their free memory suffices (default: exclusive; memory where "
        "only --min-gpu-memory-mb is given)",
    )
    demands.add_argument("--gpu-name", metavar="NAME", help="part of the GPU's name")
    demands.add_argument(
        "--min-gpu-memory-mb",
        type=positive_number,
        metavar="MB",
        help="memory of each GPU in MiB: in all, or with sharing by memory what must be free",
    )
    demands.add_argument(
        "--min-compute-capability",
        type=capability,
        metavar="X.Y",
        help="the lowest CUDA compute capability of each GPU, such as 8.0",
    )


def add_life_options(parser: argparse.ArgumentParser) -> None:
    """Add how long a claim lives, and how long the job may wait for it."""
    life = parser.add_argument_group("the claim's life")
    add_ttl_option(life)
    life.add_argument(
        "--wait",
        type=duration_between("0s", "5m"),
        metavar="DURATION",
        help="wait so long in the queue where no node can take the job now, at most 5m",
    )


def add_ttl_option(parser: argparse._ActionsContainer) -> None:
    """Add how long a claim lives without a renewal."""
    parser.add_argument(
        "--ttl",
        type=duration_between("10s", "24h"),
        metavar="DURATION",
        help="until it expires unless renewed, such as 90s or 2h; 10s to 24h (default: the registry's)",
    )


def job_request(arguments: argparse.Namespace) -> dict[str, object]:
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
    for name, option in _OPTIONS.items():
        value = job.get(name)
        if value is True:
            words.append(option)
        elif isinstance(value, Mapping):
            values = [(key, one if isinstance(one, list) else [one]) for key, one in value.items()]
            words += [word for key, some in values for one in some for word in (option, f"{key}={one}")]
        elif value is not None:
            some = value if isinstance(value, list) else [value]
            words += [word for one in some for word in (option, str(one))]
    return shlex.join(words)


def life_request(arguments: argparse.Namespace) -> dict[str, object]:
    """Return how long the claim lives and the job may wait, as the API reads it."""
    return without_none(ttl_seconds=arguments.ttl, wait_seconds=arguments.wait)


def _labels(pairs: list[tuple[str, str]]) -> dict[str, str | list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: some[0] if len(some) == 1 else some for name, some in values.items()}
