"""GPUs that more than one node declares: a UUID is one GPU wherever it is declared (§5.1).

While a claim holds a GPU on one node, its MIG parent or one of its MIG devices, the GPU is free on no other
node. Where two nodes that are not offline declare the same GPU, only the one that registered last gives it
out. Almost every GPU has one node: only those of several nodes cost anything.
"""

from collections.abc import Iterable, Iterator, Mapping

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.gpus import GpuState
from gpu_agent.wire.codes import NodeStatus


class GpuIdentities:
    """Which nodes declare which GPUs."""

    def __init__(self, candidates: Mapping[str, Candidate]) -> None:
        self._candidates = candidates
        self._one: dict[str, str] = {}
        """By UUID of a GPU or a MIG parent: the node that declares it, where it is one."""
        self._many: dict[str, dict[str, None]] = {}
        """The nodes, where they are several."""
        self._names: dict[str, frozenset[str]] = {}
        """By node: the UUIDs that it declares."""

    def update(self, candidate: Candidate) -> list[Candidate]:
        """Take in what a node declares; returns the nodes, this one included, whose free GPUs may differ."""
        node_id = candidate.record.node_id
        names, before = frozenset(_names(candidate)), self._names.get(node_id, frozenset())
        if names != before:
            affected = self._sharers(before)
            for uuid in before - names:
                self._remove(uuid, node_id)
            for uuid in names - before:
                self._add(uuid, node_id)
            self._names[node_id] = names
            return self._refresh(affected | self._sharers(names))
        return self.refresh(candidate)

    def remove(self, node_id: str) -> list[Candidate]:
        """Remove a node; returns the nodes whose free GPUs may differ."""
        names = self._names.pop(node_id, frozenset())
        affected = self._sharers(names)
        for uuid in names:
            self._remove(uuid, node_id)
        return self._refresh(affected - {node_id})

    def refresh(self, candidate: Candidate) -> list[Candidate]:
        """Return the nodes that share GPUs with one, after a claim on it was made or has ended."""
        if not self._many and not candidate.elsewhere:
            return []
        node_id = candidate.record.node_id
        return self._refresh(self._sharers(self._names.get(node_id, frozenset())))

    def _refresh(self, node_ids: Iterable[str]) -> list[Candidate]:
        affected = []
        for one in node_ids:
            candidate = self._candidates.get(one)
            if candidate is not None:
                candidate.elsewhere = dict(self._elsewhere(candidate))
                candidate.record.duplicate_gpus = frozenset(self._duplicates(candidate))
                affected.append(candidate)
        return affected

    def _sharers(self, names: Iterable[str]) -> set[str]:
        """Return the nodes that declare one of these with another node."""
        return {node_id for uuid in names for node_id in self._many.get(uuid, ())}

    def _elsewhere(self, candidate: Candidate) -> Iterator[tuple[str, str]]:
        """Say which GPUs of a node another one keeps from being given out, and why."""
        for gpu, other in self._shared(candidate):
            holder = _holder_of(other, gpu)
            if holder is not None:
                yield gpu.uuid, f"{holder} on node {other.record.node_id}"
            elif _is_duplicate(candidate, other, gpu) and _registered_later(other, candidate):
                yield gpu.uuid, f"declared by node {other.record.node_id} too, which registered later"

    def _duplicates(self, candidate: Candidate) -> Iterator[str]:
        for gpu, other in self._shared(candidate):
            if _is_duplicate(candidate, other, gpu):
                yield gpu.uuid

    def _shared(self, candidate: Candidate) -> Iterator[tuple[GpuState, Candidate]]:
        """List a node's GPUs with each other node that declares them, their MIG parent or a MIG device."""
        for gpu in candidate.record.gpus.values():
            for uuid in (gpu.uuid, gpu.parent_uuid):
                for node_id in self._many.get(uuid or "", ()):
                    other = self._candidates.get(node_id)
                    if other is not None and other is not candidate:
                        yield gpu, other

    def _add(self, uuid: str, node_id: str) -> None:
        if uuid in self._many:
            self._many[uuid][node_id] = None
        elif uuid in self._one:
            self._many[uuid] = {self._one.pop(uuid): None, node_id: None}
        else:
            self._one[uuid] = node_id

    def _remove(self, uuid: str, node_id: str) -> None:
        nodes = self._many.get(uuid)
        if nodes is None:
            self._one.pop(uuid, None)
            return
        nodes.pop(node_id, None)
        if len(nodes) == 1:
            self._one[uuid] = next(iter(self._many.pop(uuid)))


def _names(candidate: Candidate) -> Iterator[str]:
    record = candidate.record
    yield from (uuid for uuid in record.gpus if not uuid.startswith("#"))
    yield from record.gpus.devices
    for uuid in (*candidate.exclusive, *candidate.reserved):  # claimed, and perhaps declared no more
        if not uuid.startswith("#"):
            yield uuid


def _holder_of(other: Candidate, gpu: GpuState) -> str | None:
    """Say which claim on another node holds a GPU, its MIG parent or one of its MIG devices."""
    devices = other.record.gpus.devices.get(gpu.uuid, ())
    for uuid in (gpu.uuid, gpu.parent_uuid or "", *devices):
        if uuid in other.exclusive:
            return str(other.exclusive[uuid])
        if uuid in other.reserved:
            return "shared by claims"
    return None


def _is_duplicate(candidate: Candidate, other: Candidate, gpu: GpuState) -> bool:
    """Whether both nodes could give a GPU out."""
    theirs = other.record.gpus.get(gpu.uuid)
    offline = NodeStatus.OFFLINE in (candidate.record.status, other.record.status)
    return theirs is not None and not offline and not (gpu.is_parent and theirs.is_parent)


def _registered_later(one: Candidate, other: Candidate) -> bool:
    first, second = one.record, other.record
    return (first.registered_at, first.node_id) > (second.registered_at, second.node_id)
