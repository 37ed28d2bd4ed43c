"""`gpu-agent schema`: the JSON Schemas of messages and of what commands print with `--json`."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import CoreSchema
from pydantic_core.core_schema import ComputedField, DataclassField, ModelField, TypedDictField

from gpu_agent.cli.agent.doctor import SCHEMA as DOCTOR_SCHEMA
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe
from gpu_agent.node.control.explain import SCHEMA as EXPLAIN_SCHEMA
from gpu_agent.node.control.status import SCHEMA as STATUS_SCHEMA
from gpu_agent.node.public_jobs import Limit
from gpu_agent.probe.snapshot import SCHEMA
from gpu_agent.registry.dispatch.refusals import ExclusionReason
from gpu_agent.runtime.check_results import CheckStatus
from gpu_agent.session.types import State
from gpu_agent.wire import schema as messages
from gpu_agent.wire.inventory import Gpu, Host, Model, Outcome
from gpu_agent.wire.schema import DIALECT

PROBE_NAME = "probe"
_TEMPLATE = "#/$defs/{model}"


class _AlwaysThere(GenerateJsonSchema):
    """A field's default is what the document holds, not a reason to leave it out."""

    def field_is_required(
        self,
        field: ModelField | DataclassField | TypedDictField | ComputedField,  # noqa: ARG002 - pydantic's signature
        total: bool,  # noqa: ARG002, FBT001 - pydantic's signature
    ) -> bool:
        return True


def probe_schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    kinds = {"host": Host, "gpu": Gpu, "model": Model, "outcome": Outcome}
    inputs: list[tuple[str, JsonSchemaMode, CoreSchema]] = [
        (name, "serialization", TypeAdapter(kind).core_schema) for name, kind in kinds.items()
    ]
    made, definitions = _AlwaysThere(ref_template=_TEMPLATE).generate_definitions(inputs)
    of = {name: made[name, "serialization"] for name in kinds}
    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "outcome": of["outcome"],
        "detail": _nullable_type("string", "what to do where the outcome is not `ok`"),
        "could_register": {"type": "boolean", "description": "as the exit code 0 says"},
        "simulated": {"type": "boolean", "description": "true for a machine that does not exist"},
        "host": of["host"],
        "gpus": {"type": "array", "items": of["gpu"]},
        "models": {"type": "array", "items": of["model"]},
        "models_complete": {"type": "boolean", "description": "false: the search ran out of its time"},
        "models_unsearched": {
            "type": "object",
            "description": "place: why it could not be searched for models",
            "additionalProperties": {"type": "string"},
        },
        "features_supported": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "advanced_features": {"type": "array", "items": {"type": "string"}},
        "driver_version": _nullable_type("string", "the NVIDIA driver's"),
        "cuda_version": _nullable_type("string", "the newest that the driver serves"),
        "took_ms": {"type": "number"},
    }
    watched = {
        "at": {"type": "number", "description": "Unix time; with --watch only"},
        "probe_age_seconds": _nullable_type(
            "number", "age of the last good reading of the GPUs; with --watch only"
        ),
    }
    return {
        "$schema": DIALECT,
        "title": PROBE_NAME,
        "description": f"What `gpu-agent probe --json` prints ({SCHEMA}). Sizes are MiB (`_mb`) or bytes, "
        "temperatures °C, power W, times Unix seconds. Unknown is null, with its reason in `unknowns`.",
        "type": "object",
        "required": list(properties),
        "properties": {**properties, **watched},
        "$defs": definitions,
    }


def _nullable_type(kind: str, meaning: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": meaning}


DOCTOR_NAME = "doctor"


def doctor_schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    check = {
        "check": {"type": "string", "description": "what was looked at; docs/probe.md lists them"},
        "verdict": {"enum": [verdict.value for verdict in CheckStatus]},
        "detail": {"type": "string", "description": "what was seen, for a person"},
        "fix": {"type": ["string", "null"], "description": "what to do; null where there is nothing"},
    }
    properties = {
        "schema": {"const": DOCTOR_SCHEMA},
        "ok": {"type": "boolean", "description": "true when nothing fails, as the exit code 0 says"},
        "checks": {
            "type": "array",
            "description": "in the order of the way from the driver to the registry",
            "items": {"type": "object", "required": list(check), "properties": check},
        },
    }
    return {
        "$schema": DIALECT,
        "title": DOCTOR_NAME,
        "description": f"What `gpu-agent doctor --json` prints ({DOCTOR_SCHEMA}).",
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }


WHY_NAME = "why"


def why_schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    objection = {
        "reason": {
            "enum": [reason.value for reason in ExclusionReason],
            "description": "as dispatch excludes a node by it; docs/operating.md explains each",
        },
        "refuses": {"type": "string", "description": "which jobs, for a person; `every job` is all of them"},
        "need": {"type": "string", "description": "what such a job needs"},
        "have": {"type": "string", "description": "what this node has instead"},
        "clears_when": {"type": "string", "description": "what would end it; empty where that is not known"},
    }
    properties: dict[str, Any] = {
        "schema": {"const": EXPLAIN_SCHEMA},
        "node_id": {"type": ["string", "null"], "description": "null until a registry has given it one"},
        "connected": {"type": "boolean", "description": "whether the registry hears this node"},
        "refuses_every_job": {"type": "boolean", "description": "whether one objection refuses every job"},
        "objections": {
            "type": "array",
            "items": {"type": "object", "required": list(objection), "properties": objection},
        },
        "only_the_registry_knows": {"type": "array", "items": {"type": "string"}},
        "ask": {"type": "string", "description": "the command that asks the registry the same"},
    }
    return {
        "$schema": DIALECT,
        "title": WHY_NAME,
        "description": f"What `gpu-agent why --json` prints ({EXPLAIN_SCHEMA}): which jobs this node would "
        "be refused now, as far as the node itself knows.",
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }


STATUS_NAME = "status"
_ONLY_WHEN_WATCHED = "at"


def status_schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    machine, definitions = _machine()
    properties = {
        "schema": {"const": STATUS_SCHEMA},
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
        "status": {**_nullable(_status()), "description": "the registry's last word; null before its first"},
        "drain": {**_nullable(_drain()), "description": "the owner's own; null where there is none"},
        "accept_public_jobs": _is("boolean", "what the registry is told: wanted, and nothing pauses them"),
        "public_jobs": _public_jobs(),
        "max_concurrent_jobs": _or_null("integer", "null leaves it to the registry"),
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "jobs": _object(
            announced=_is("boolean", "false: no program ever announced one; processes on the GPUs count"),
            in_flight={"type": "array", "description": "the longest first", "items": job_schema()},
        ),
        "machine": {**_nullable(machine), "description": "what the last probe found; null before the first"},
    }
    return {
        "$schema": DIALECT,
        "title": STATUS_NAME,
        "description": f"What `gpu-agent status --json` prints ({STATUS_SCHEMA}). Times are Unix seconds, "
        "lengths of time seconds; unknown is null.",
        **_object(**properties),
        "$defs": definitions,
    }


def job_schema() -> dict[str, Any]:
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
        last_heartbeat_at=_or_null("number", "null before the first"),
        last_heartbeat_age_seconds=_or_null("number", "null before the first"),
        beats=_is("integer", "number of the last one in this session"),
        interval_seconds=_or_null("number", "between beats, while registered"),
        next_attempt_at=_or_null("number", "null where none is waited for"),
        next_attempt_in_seconds=_or_null("number", "null where none is waited for"),
    )


def _status() -> dict[str, Any]:
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


_DOCUMENTS = {
    PROBE_NAME: probe_schema,
    DOCTOR_NAME: doctor_schema,
    STATUS_NAME: status_schema,
    WHY_NAME: why_schema,
}
NAMES: tuple[str, ...] = (*messages.NAMES, *_DOCUMENTS)
"""What a schema exists for: the protocol's messages, then what commands print with `--json`."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Print the JSON Schema (draft 2020-12) of one message, of all that one side may say, or of what "
        "`probe`, `doctor`, `status` or `why` prints with `--json`. "
        "Without a name: one object with every schema by name.",
        example="gpu-agent schema node_register",
        exits={ExitCode.OK: "printed or written", ExitCode.FAILED: "the folder cannot be written"},
        asks=False,
    )
    parser.add_argument("name", nargs="?", choices=NAMES, metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument(
        "--write",
        metavar="DIR",
        type=Path,
        help="write each schema to DIR/<name>.json; DIR is made if need be",
    )


def main(arguments: argparse.Namespace) -> int:
    """Print or write."""
    if arguments.write is not None:
        _write(arguments.write, NAMES if arguments.name is None else (arguments.name,))
    elif arguments.name is not None:
        print(_text(schema_of(arguments.name)), end="")
    else:
        print(_text({name: schema_of(name) for name in NAMES}), end="")
    return ExitCode.OK


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one of `NAMES`."""
    return _DOCUMENTS[name]() if name in _DOCUMENTS else messages.schema_of(name)


def _write(folder: Path, names: Iterable[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"{name}.json").write_text(_text(schema_of(name)), encoding="utf-8")
    except OSError as error:
        place = error.filename or folder
        raise Failure(
            f"{place} cannot be written ({error.strerror}); name another folder: --write DIR"
        ) from None


def _text(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"


COMMANDS: Commands = {
    "schema": (configure, main),
}
