"""An explanation as JSON, written piece by piece: of ten thousand nodes it takes two megabytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from typing import TypeVar

from pydantic import TypeAdapter

from gpu_agent.registry.dispatch.verdict import Excluded, Explanation

NODES_IN_A_PIECE = 256

T = TypeVar("T")

_NAMES = TypeAdapter(tuple[str, ...])
_REASONS = TypeAdapter(tuple[Excluded, ...])


async def written(explanation: Explanation) -> AsyncIterator[bytes]:
    """Write it as `ExplanationAnswer` reads; after each piece everybody else has a turn."""
    yield b'{"job_id":' + json.dumps(explanation.job_id).encode() + b',"able":['
    async for piece in _listed(explanation.able, _NAMES):
        yield piece
    yield b'],"excluded":['
    async for piece in _listed(explanation.excluded, _REASONS):
        yield piece
    counts = {reason.value: count for reason, count in explanation.counts.items()}
    yield b'],"counts":' + json.dumps(counts).encode() + b"}"


async def _listed(items: Sequence[T], adapter: TypeAdapter[tuple[T, ...]]) -> AsyncIterator[bytes]:
    """Write the items of a list, without its brackets."""
    left, separator = iter(items), b""
    while some := tuple(islice(left, NODES_IN_A_PIECE)):
        yield separator + adapter.dump_json(some)[1:-1]
        separator = b","
        await asyncio.sleep(0)
