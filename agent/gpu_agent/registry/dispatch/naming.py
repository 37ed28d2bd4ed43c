"""Names and GPUs in the sentences of dispatch, for a person: a few of many, and never too long."""

from collections import Counter
from collections.abc import Iterable

from gpu_agent.registry.quoting import quoted
from gpu_agent.registry.record import NodeRecord

SHOWN_NAMES = 8


def listed(names: Iterable[str], *, in_order: bool = False, empty: str = "none") -> str:
    """List some names, sorted unless they come in an order of their own."""
    known = list(names) if in_order else sorted(names)
    shown = known[:SHOWN_NAMES]
    more = len(known) - len(shown)
    return ", ".join(map(quoted, shown)) + (f" and {more} more" if more else "") if shown else empty


def gpus(record: NodeRecord) -> str:
    """List a node's GPUs with the health of each; those that are alike are counted."""
    alike = Counter((gpu.name, "MIG parent" if gpu.is_parent else gpu.health) for gpu in record.gpus.values())
    parts = (
        f"{f'{count}x ' if count > 1 else ''}{quoted(name)} {quoted(state)}"
        for (name, state), count in alike.items()
    )
    return listed(parts, in_order=True) if alike else "no GPU"


def memory(free: Iterable[int | None]) -> str:
    """List free memory, GPU by GPU."""
    return listed(
        ("unknown" if one is None else f"{max(one, 0)} MiB" for one in free), in_order=True, empty="no GPU"
    )


def model_state(record: NodeRecord, model: str) -> str:
    """Say what a node has of a model: `ready`, `disabled`, `not installed`, or what its own word is."""
    installed = [one for one in record.models if one.model_id == model]
    if model in record.ready_models:
        return "ready"
    if not installed:
        return "not installed"
    if not any(one.enabled for one in installed):
        return "disabled"
    stated = (record.capability_state or {}).get(model)
    return quoted(stated or next(one.status for one in installed if one.enabled))
