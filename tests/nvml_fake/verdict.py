"""What must hold of every report, whatever the driver said: the property behind the random machines.

A report is judged as all its readers would take it: as a document by the published schema, as a
registration and as a heartbeat on the wire, and as a reading for the health of each GPU.
"""

import functools
import json
from dataclasses import fields

import jsonschema

from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.nvml.memory import ABSURD_BYTES, MIB
from gpu_agent.probe.snapshot import to_document
from gpu_agent.wire.codec import encode
from gpu_agent.wire.declaration import (
    DeclarationChanges,
    HeartbeatFigures,
    Owner,
    declare,
    heartbeat,
    registration,
)
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Outcome
from gpu_agent.wire.probe_document import probe_schema

HOST = Host(
    cpu_logical_cores=8,
    cpu_physical_cores=4,
    memory_total_mb=1024,
    memory_used_mb=1,
    memory_available_mb=1023,
    platform="linux",
)
_MOMENT = HeartbeatFigures(
    timestamp_ms=1,
    cpu_percent=1.0,
    mem_percent=1.0,
    running_jobs=0,
    running_job_ids=None,
    probe_age_seconds=0.0,
)
_UNREAD = frozenset({"gpu_lost", "gpu_reset_required", "gpu_inaccessible", "gpu_silent"})
"""Reasons of a GPU that was not read: they stand for each of its figures."""
_NOFIGURES = frozenset(
    {
        "uuid",
        "name",
        "index",
        "vendor",
        "memory_kind",
        "parent_uuid",
        "gpu_instance",
        "health",
        "reasons",
        "unknowns",
    }
    | {"events", "asleep", "visible", "offered"}
)
FIGURES = tuple(field.name for field in fields(Gpu) if field.name not in _NOFIGURES)


def judge(report: GpuReport, tracker: HealthTracker, *, now: float, by_schema: bool = True) -> None:
    """Fail where a report is not what it must be; `by_schema` takes its time."""
    assert report.outcome is Outcome.OK or report.detail, "a driver that does not work says why"
    assert "speaks another version" not in (report.detail or ""), report.detail
    uuids = [gpu.uuid for gpu in report.gpus]
    assert len(set(uuids)) == len(uuids), uuids
    for gpu in report.gpus:
        _judge_gpu(gpu)
    parents = {gpu.parent_uuid for gpu in report.gpus if gpu.parent_uuid}
    assert not [gpu.uuid for gpu in report.usable if gpu.uuid in parents]
    _judge_as_told(tracker.observe(report, now_wall=now, now_mono=now), by_schema=by_schema)


def _judge_gpu(gpu: Gpu) -> None:
    assert gpu.memory_mb is None or 0 <= gpu.memory_mb <= ABSURD_BYTES // MIB, gpu
    assert gpu.utilization_percent is None or 0 <= gpu.utilization_percent <= 100, gpu
    assert all(reason.detail and reason.action for reason in gpu.reasons), gpu
    if {reason.code for reason in gpu.reasons} & _UNREAD:
        return
    unexplained = [name for name in FIGURES if getattr(gpu, name) is None and name not in gpu.unknowns]
    assert unexplained == [], f"unknown without a reason: {unexplained} of {gpu}"
    both = [name for name in FIGURES if getattr(gpu, name) is not None and name in gpu.unknowns]
    assert both == [], f"known, and said to be unknown: {both} of {gpu}"


def _judge_as_told(report: GpuReport, *, by_schema: bool) -> None:
    inventory = Inventory(host=HOST, gpu=report)
    document = to_document(inventory)
    assert json.loads(json.dumps(document)) == document
    if by_schema:
        _validator().validate(document)
    declaration = declare(inventory, Owner())
    for version in ("1.0", "1.1"):
        encode(registration(declaration, node_id="n", schema_version=version))
    encode(heartbeat("n", inventory, moment=_MOMENT, changed=DeclarationChanges(), sequence=1))


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(probe_schema())
