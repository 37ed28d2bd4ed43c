"""Names and GPUs in the sentences of dispatch, for a person: a few of many, and never too long."""

from collections.abc import Iterable

from gpu_agent.registry.quoting import quoted
from gpu_agent.registry.record import NodeRecord

SHOWN_NAMES = 8


def listed(names: Iterable[str], *, in_order: bool = False) -> str:
    """List some names, sorted unless they come in an order of their own."""
    known = list(names) if in_order else sorted(names)
    shown = known[:SHOWN_NAMES]
    more = len(known) - len(shown)
    return ", ".join(map(quoted, shown)) + (f" and {more} more" if more else "") if shown else "none"


def gpus(record: NodeRecord) -> str:
    """List a node's GPUs with the health of each."""
    shown = list(record.gpus.values())[:SHOWN_NAMES]
    parts = (f"{quoted(gpu.name)} {'MIG parent' if gpu.is_parent else quoted(gpu.health)}" for gpu in shown)
    return ", ".join(parts) or "no GPU"


def memory(free: Iterable[int | None]) -> str:
    """List free memory, GPU by GPU."""
    shown = list(free)[:SHOWN_NAMES]
    return ", ".join("unknown" if one is None else f"{max(one, 0)} MiB" for one in shown)


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
