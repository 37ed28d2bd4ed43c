"""What a registry's answers hold at the least, as far as the commands read them.

A newer registry may say more. It refuses nothing itself: it names the first thing that is lacking.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeAlias

Kind: TypeAlias = "type | UnionType | ListOf"
Shape: TypeAlias = Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of objects of one shape."""

    shape: Shape


ANYTHING: Shape = {}
_GPU: Shape = {"name": str}
_MODEL: Shape = {"model_id": str, "version": str}

EVENT: Shape = {"event": str, "at": float | int}

NODE: Shape = {
    "node_id": str,
    "status": str,
    "reason_code": str,
    "connected": bool,
    "gpus": ListOf(_GPU),
    "installed_models": ListOf(_MODEL),
    "in_flight_jobs": int,
    "max_concurrent_jobs": int,
    "last_beat_age_seconds": float | int | None,
}
NODES: Shape = {"nodes": ListOf(NODE)}
NODE_DETAIL: Shape = {
    **NODE,
    "since": float | int,
    "reason": str,
    "checks": ListOf({"name": str, "ok": bool, "detail": str}),
    "events": ListOf(EVENT),
}
EXPLANATION: Shape = {
    "able": list,
    "excluded": ListOf({"node_id": str, "reason": str, "need": str, "have": str}),
    "counts": dict,
}
SELECTION: Shape = {"node_id": str}
CLAIM: Shape = {"node_id": str, "gpu_uuids": list, "expires_at": float | int}
EVENTS: Shape = {"events": ListOf(EVENT)}
OBJECTION: Shape = {"reason": str, "refuses": str, "need": str, "have": str, "clears_when": str}
WHY: Shape = {
    "node_id": str,
    "refuses_every_job": bool,
    "objections": ListOf(OBJECTION),
    "limits": ListOf(OBJECTION),
}
EXCLUSIONS: Shape = {
    "windows": ListOf({"window_start": float | int, "failed": int, "counts": dict, "examples": dict}),
}
NEW_TOKEN: Shape = {"token_id": str, "token": str, "expires_at": float | int | None}
TOKENS: Shape = {
    "tokens": ListOf({"token_id": str, "kind": str, "state": str, "created_at": float | int}),
}
THRESHOLDS: Shape = {
    "thresholds": ListOf({"name": str, "value": float | int | list, "unit": str, "meaning": str}),
}
CLAIMS: Shape = {"claims": ListOf({"job_id": str, "node_id": str, "expires_at": float | int})}


def lacking(document: Mapping[str, Any], shape: Shape) -> str | None:
    """The first part of the shape that the document lacks, or has as something else."""
    for name, kind in shape.items():
        value = document.get(name, ...)
        if isinstance(kind, ListOf):
            lacks = _lacking_in_list(value, kind.shape)
            if lacks is not None:
                return f"{name}{lacks}"
        elif not isinstance(value, kind):
            return name
    return None


def _lacking_in_list(value: object, shape: Shape) -> str | None:
    if not isinstance(value, list):
        return ""
    for one in value:
        lacks = lacking(one, shape) if isinstance(one, dict) else ""
        if lacks is not None:
            return f"[].{lacks}" if lacks else "[]"
    return None
