"""The JSON Schema of `gpu-agent status --json`, of what `drain`, `resume` and `refresh` answer too.

The machine in it is the probe's document, by the probe's own schema. It allows fields that it does not know.
"""

from typing import Any

from gpu_agent.cli.probe.schema import schema as probe_schema
from gpu_agent.node.limits import Limit
from gpu_agent.node.socket.status import SCHEMA
from gpu_agent.session.story import State
from gpu_agent.wire.schema import DIALECT

NAME = "status"
_ONLY_WHEN_WATCHED = "at"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    machine, definitions = _machine()
    properties = {
        "schema": {"const": SCHEMA},
        "agent": _object(
            version=_is("string", "the software's"),
            pid=_is("integer", "its process, as it sees itself"),
            hostname=_is("string", "its machine's name"),
            started_at=_is("number", "Unix time"),
        ),
        "node_id": _or_null("string", "null until a registry has given it one"),
        "connected": _is("boolean", "whether the registry hears this node"),
        "ready": _is("boolean", "whether it does and has said last that the node is ready"),
        "session": _session(),
        "status": {**_nullable(_verdict()), "description": "the registry's last word; null before its first"},
        "drain": {**_nullable(_drain()), "description": "the owner's own; null where there is none"},
        "accept_public_jobs": _is("boolean", "what the registry is told: wanted, and nothing pauses them"),
        "public_jobs": _public_jobs(),
        "max_concurrent_jobs": _or_null("integer", "null leaves it to the registry"),
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "jobs": _object(
            announced=_is("boolean", "false: no program ever announced one; processes on the GPUs count"),
            in_flight={"type": "array", "description": "the longest first", "items": job()},
        ),
        "machine": {**_nullable(machine), "description": "what the last probe found; null before the first"},
    }
    return {
        "$schema": DIALECT,
        "title": NAME,
        "description": f"What `gpu-agent status --json` prints ({SCHEMA}). Times are Unix seconds, lengths "
        "of time seconds; unknown is null.",
        **_object(**properties),
        "$defs": definitions,
    }


def job() -> dict[str, Any]:
    """Return the schema of one job in flight."""
    return _object(
        job_id={"type": "string"},
        uid=_is("integer", "the user who announced it"),
        since=_is("number", "Unix time of its first announcement"),
        pid=_or_null("integer", "the process that holds it, or that is behind the connection that does"),
        held_by={"enum": ["connection", "process"], "description": "what ends it when it ends"},
    )


def _session() -> dict[str, Any]:
    return _object(
        registry=_is("string", "its URL"),
        state={"enum": [state.value for state in State], "description": "docs/local.md explains each"},
        since=_or_null("number", "when it came into this state"),
        link_since=_or_null("number", "since when the registry hears this node, or does not"),
        why=_or_null("string", "why the last attempt failed, or none is made; null once registered"),
        last_beat_at=_or_null("number", "null before the first"),
        last_beat_age_seconds=_or_null("number", "null before the first"),
        beats=_is("integer", "number of the last one in this session"),
        interval_seconds=_or_null("number", "between beats, while registered"),
        next_attempt_at=_or_null("number", "null where none is waited for"),
        next_attempt_in_seconds=_or_null("number", "null where none is waited for"),
    )


def _verdict() -> dict[str, Any]:
    check = _object(name={"type": "string"}, ok={"type": "boolean"}, detail={"type": "string"})
    return _object(
        status=_is("string", "registering, ready, degraded, draining or offline"),
        reason=_or_null("string", "for a person"),
        reason_code=_or_null("string", "for programs; an older registry gives none"),
        since=_or_null("number", "by the registry's clock"),
        told_at=_or_null("number", "by this machine's clock"),
        told_age_seconds=_or_null("number", "how long ago that was"),
        current=_is("boolean", "false: the connection was lost since"),
        checks={"type": "array", "items": check},
        in_flight_jobs=_or_null("integer", "as the registry counts them"),
        drain_deadline=_or_null("number", "of a drain that the registry knows of"),
        clears_when=_or_null("string", "what would change the status, for a person"),
    )


def _drain() -> dict[str, Any]:
    return _object(
        reason={"type": "string"},
        over=_is("boolean", "true: the machine is emptied, and stays so until `resume`"),
        deadline_at=_or_null("number", "when it ends whatever runs"),
        deadline_in_seconds=_or_null("number", "0 once that is past"),
    )


def _public_jobs() -> dict[str, Any]:
    limit = {"enum": [limit.value for limit in Limit], "description": "the setting in [public_jobs]"}
    pause = _object(limit=limit, detail=_is("string", "for a person"))
    return _object(
        wanted=_is("boolean", "what accept_public_jobs says"),
        pauses={"type": "array", "description": "what keeps them out though wanted", "items": pause},
    )


def _machine() -> tuple[dict[str, Any], dict[str, Any]]:
    """The probe's document and its definitions, with what an agent knows besides."""
    probe = probe_schema()
    properties = {name: one for name, one in probe["properties"].items() if name != _ONLY_WHEN_WATCHED}
    properties["probe_age_seconds"] = _or_null("number", "age of the last good reading of the GPUs")
    properties["models_found"] = _is("integer", "of very many, `models` lists a part")
    properties["models_not_declared"] = {
        "type": "array",
        "description": "left out of the declaration for want of room",
        "items": {"type": "string"},
    }
    return _object(**properties), probe["$defs"]


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _is(kind: str, meaning: str) -> dict[str, Any]:
    return {"type": kind, "description": meaning}


def _or_null(kind: str, meaning: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": meaning}


def _nullable(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "type": [part["type"], "null"]}
