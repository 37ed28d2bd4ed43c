"""A job's demands (§5) as options, the same for every command that asks for a place or about one."""

import argparse

from gpu_agent.cli.argument_values import at_least_one, label, whole

_Demands = dict[str, object]


def add_demands(parser: argparse.ArgumentParser) -> None:
    """Add one option for each demand that a job may state."""
    demands = parser.add_argument_group("what the job demands")
    demands.add_argument(
        "--model", action="append", default=[], metavar="M", help="a required model (repeatable)"
    )
    demands.add_argument(
        "--feature", action="append", default=[], metavar="F", help="a required feature (repeatable)"
    )
    demands.add_argument("--public", action="store_true", help="a job of the public pool")
    demands.add_argument(
        "--gpus", type=at_least_one, default=1, metavar="N", help="how many GPUs (default 1)"
    )
    demands.add_argument("--gpu-name", metavar="NAME", help="part of the GPU's name")
    demands.add_argument(
        "--min-gpu-memory-mb", type=at_least_one, metavar="MB", help="free memory on each GPU, in MiB"
    )
    demands.add_argument(
        "--label",
        action="append",
        type=label,
        default=[],
        metavar="K=V",
        help="a required label (repeatable)",
    )
    demands.add_argument(
        "--node", action="append", default=None, metavar="ID", help="only on these nodes (repeatable)"
    )
    demands.add_argument(
        "--affinity", metavar="KEY", help="prefer the node that last had a job with this key"
    )
    demands.add_argument("--priority", type=whole, metavar="N", help="the job's priority (default 0)")


def demands_of(arguments: argparse.Namespace) -> _Demands:
    """The demands as the API reads them; what was not asked for is left out."""
    job: _Demands = {
        "required_models": arguments.model,
        "required_features": arguments.feature,
        "public": arguments.public or None,
        "gpu_count": arguments.gpus,
        "gpu_name": arguments.gpu_name,
        "min_gpu_memory_mb": arguments.min_gpu_memory_mb,
        "labels": dict(arguments.label),
        "allowed_nodes": arguments.node,
        "affinity_key": arguments.affinity,
        "priority": arguments.priority,
    }
    return {name: value for name, value in job.items() if value not in (None, [], {})}
