"""Asking for a node for a job: what commands say of a place, and of there being none."""

import argparse
import time
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import Shape
from gpu_agent.cli.asking.api import Api, Refused
from gpu_agent.cli.durations import in_words
from gpu_agent.cli.nodes.verdict_sheet import need_and_have
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.printable import printable

_NOBODY = "NO_AVAILABLE_NODE"
_EXAMPLES = 5


def placed(
    api: Api, path: str, job: Mapping[str, object], *, arguments: argparse.Namespace, shape: Shape
) -> dict[str, Any] | None:
    """Ask for a place; None when nobody can take the job and that is what was to be printed."""
    try:
        return api.post(path, job, shape)
    except Refused as refused:
        if refused.problem.code != _NOBODY:
            raise
        if arguments.json:
            print_json(refused.problem.document)
            return None
        told = "\n".join([str(refused), *_examples(refused.problem.document)])
        raise Failure(told, code=ExitCode.NOBODY) from None


def place_in_words(place: Mapping[str, Any]) -> str:
    """Where a job has its place: the node, its GPUs, and where its worker is reached."""
    gpus = f", GPUs {' '.join(place['gpu_uuids'])}" if place.get("gpu_uuids") else ""
    worker = f", workers at {place['endpoint']}" if place.get("endpoint") else ""
    return printable(f"{place['node_id']}{gpus}{worker}")


def held_in_words(place: Mapping[str, Any]) -> str:
    """How long a place is held unless it is renewed."""
    return f"for {in_words(place['expires_at'] - time.time())} unless renewed"


def _examples(problem: Mapping[str, Any]) -> list[str]:
    examples = problem.get("examples")
    if not isinstance(examples, dict):
        return []
    told = [
        printable(f"{one['node_id']}: {one['reason']} ({need_and_have(one)})")
        for shown in examples.values()
        for one in shown
    ]
    return [f"  {one}" for one in told[:_EXAMPLES]]
