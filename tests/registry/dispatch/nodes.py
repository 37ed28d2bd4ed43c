"""Nodes to dispatch to: ready, connected, near and idle, unless a test says otherwise."""
# ruff: noqa: ANN401 - facts of any type are passed through as they are

from dataclasses import fields, replace
from itertools import count
from typing import Any

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.dispatch.dispatch import Choice, Dispatch
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.job import Claim, ClaimEnd, Job
from gpu_agent.registry.model_list import ModelList
from gpu_agent.registry.node import Declared, Liveness, NodeRecord, ReportedJobs
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus
from gpu_agent.wire.heartbeat import Usage
from gpu_agent.wire.messages import Hardware, InstalledModel, NodeRegister

HARDWARE = Hardware(cpu_cores=8, memory_gb=32)

_NUMBERS = count()


def node(node_id: str = "node-A", *, status: NodeStatus = NodeStatus.READY, **facts: Any) -> NodeRecord:
    """Build a record with one idle 24 GiB GPU of its own; `facts` are named like the fields of its groups."""
    record = NodeRecord(
        node_id=node_id,
        registered_at=0.0,
        status=status,
        connection=1,
        declared=Declared(registration=NodeRegister(version="1.0", hardware=HARDWARE)),
        gpus=gpus(gpu("GPU-0" if node_id == "node-A" else f"GPU-{node_id}")),
        liveness=Liveness(round_trip_seconds=0.001, usage=usage()),
    )
    change(record, **facts)
    return record


def change(record: NodeRecord, **facts: Any) -> None:
    """Change facts of a node, as its heartbeats, its declaration and its operators would."""
    groups = (record, record.liveness, record.schedule, record.desired)
    declared = {name: facts.pop(name) for name in tuple(facts) if name in _DECLARED}
    sent = {name: facts.pop(name) for name in tuple(facts) if name in _SENT}
    jobs = {name: facts.pop(name) for name in tuple(facts) if name in _JOBS}
    if "installed_models" in sent or "capability_state" in sent:
        models, states = sent.get("installed_models", ()), sent.get("capability_state")
        declared["models"] = ModelList(models, states)
    if sent:
        declared["registration"] = record.declared.registration.model_copy(update=sent)
    if declared:
        record.declared = replace(record.declared, **declared)
    if jobs:
        record.jobs = replace(record.jobs, **jobs)
    for name, value in facts.items():
        (group,) = [group for group in groups if hasattr(group, name)]
        setattr(group, name, value)


_DECLARED = {field.name for field in fields(Declared)}
_JOBS = {field.name for field in fields(ReportedJobs)}
_SENT = frozenset(NodeRegister.model_fields) - _DECLARED


def gpu(
    uuid: str,
    *,
    name: str = "NVIDIA L4",
    memory_mb: int | None = 24576,
    used_mb: int | None = 0,
    health: str = "ok",
    **facts: Any,
) -> GpuState:
    """Build a GPU."""
    return GpuState(uuid=uuid, name=name, memory_mb=memory_mb, memory_used_mb=used_mb, health=health, **facts)


def gpus(*states: GpuState) -> Gpus:
    """Key GPUs by UUID, as records do."""
    return Gpus(states)


def model(model_id: str, *, enabled: bool = True, status: str = "ready") -> InstalledModel:
    """Build an installed model."""
    return InstalledModel(model_id=model_id, version="1", enabled=enabled, status=status)


def usage(
    *, cpu: float = 5, memory: float = 20, gpu_percent: float | None = 0, gpu_memory: float | None = 0
) -> Usage:
    """Build the usage that a heartbeat reports, with these loads in percent."""
    return Usage(cpu_percent=cpu, mem_percent=memory, gpu_percent=gpu_percent, gpu_mem_percent=gpu_memory)


def job(job_id: str = "job-1", **demands: object) -> Job:
    """Build a job."""
    return Job(job_id=job_id, **demands)  # type: ignore[arg-type] # tests name fields freely


def dispatching(*records: NodeRecord, chance: float = 0.0, **settings: float) -> Dispatch:
    """Build a dispatch that knows these nodes and always draws `chance`."""
    dispatch = Dispatch(Thresholds(**settings), lambda: chance)  # type: ignore[arg-type] # floats only
    for record in records:
        dispatch.update(record)
    return dispatch


def claimed(dispatch: Dispatch, wanted: Job, now: float = 0.0) -> Claim:
    """Claim what must be free."""
    answer = dispatch.claim(wanted, now, claim_id=f"claim-{next(_NUMBERS)}", owner=None)
    assert isinstance(answer, tuple), answer
    return answer[0]


def released(dispatch: Dispatch, job_id: str, now: float = 0.0) -> Claim | None:
    """Release a job's claim; None where it holds none."""
    ended = dispatch.end(job_id, ClaimEnd.RELEASED, now)
    return None if ended is None else ended[0]


def lost(dispatch: Dispatch, node_id: str, now: float = 0.0) -> list[Claim]:
    """End a node's claims as lost; what they hold stays held."""
    claims = dispatch.claims_on(node_id)
    for claim in claims:
        dispatch.end(claim.job_id, ClaimEnd.LOST, now)
    return claims


def candidate_of(record: NodeRecord) -> Candidate:
    """Return a node as the index knows it."""
    return Index(Thresholds()).update(record)


def refused(dispatch: Dispatch, wanted: Job) -> dict[ExclusionReason, int]:
    """Return the counts of a refusal that must come."""
    answer = dispatch.select(wanted, 0.0)
    assert isinstance(answer, NoAvailableNode), answer
    return dict(answer.counts)


def chosen(dispatch: Dispatch, wanted: Job, now: float = 0.0) -> Choice:
    answer = dispatch.select(wanted, now)
    assert isinstance(answer, Choice), answer
    return answer
