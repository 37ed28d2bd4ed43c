"""GPUs that more than one node declares: a UUID is one GPU wherever it is declared (§5.1).

While a claim holds a GPU on one node, its MIG parent or one of its MIG devices, the GPU is free on no other
node. Where several nodes that are not offline declare the same GPU, only the one that registered last gives
it out. Almost every GPU has one node. A peer may declare the GPUs of thousands: a change then concerns the
node that registered last, and no others, since those give the GPU out in no case.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Grant
from gpu_agent.wire.codes import NodeStatus

_Rank = tuple[float, str]
"""When a node registered, and its id: the greatest registered last."""


class GpuIdentities:
    """Which nodes declare which GPUs, and which of these GPUs claims hold."""

    def __init__(self, candidates: Mapping[str, Candidate]) -> None:
        self._candidates = candidates
        self._declared: dict[str, tuple[_Rank, frozenset[str]]] = {}
        """By node that is not offline: its rank, and the UUIDs of its GPUs."""
        self._owner: dict[str, str] = {}
        """By UUID: the node that registered last of those that declare it."""
        self._owners: dict[str, dict[str, None]] = {}
        """All of them, where they are several."""
        self._parents: dict[str, str] = {}
        """By UUID of a MIG device: its parent."""
        self._devices: dict[str, dict[str, None]] = {}
        """By UUID of a MIG parent: its devices."""
        self._holders: dict[str, dict[str, str]] = {}
        """By UUID of a claimed GPU: the nodes on which it is claimed, and by whom."""

    def update(self, candidate: Candidate) -> list[Candidate]:
        """Take in what a node declares; returns the nodes whose free GPUs may differ, and itself."""
        record = candidate.record
        offline = record.status is NodeStatus.OFFLINE
        names = (
            frozenset() if offline else frozenset(uuid for uuid in record.gpus if not uuid.startswith("#"))
        )
        for parent_uuid, devices in () if offline else record.gpus.devices.items():
            for uuid in devices:
                self._remember_parent(uuid, parent_uuid)
        return self._replace(record.node_id, (record.registered_at, record.node_id), names)

    def remove(self, node_id: str) -> list[Candidate]:
        """Remove a node; returns the nodes whose free GPUs may differ."""
        return self._replace(node_id, (0.0, node_id), frozenset())

    def hold(self, node_id: str, uuid: str, holder: str) -> None:
        """Take in that a claim on a node holds a GPU."""
        if not uuid.startswith("#"):
            self._holders.setdefault(uuid, {})[node_id] = holder
            gpu = self._candidates[node_id].record.gpus.get(uuid)
            if gpu is not None:  # the node may be offline: then its declaration counts for nothing else
                self._remember_parent(uuid, gpu.parent_uuid)

    def remember_parents(self, grant: Grant | None) -> None:
        """Take in the parents of MIG devices that a node declares no more, before a claim holds them."""
        for uuid, parent_uuid in (
            () if grant is None else zip(grant.gpu_uuids, grant.gpu_parents, strict=False)
        ):
            if uuid not in self._parents:
                self._remember_parent(uuid, parent_uuid)

    def free(self, node_id: str, uuid: str) -> None:
        """Take in that no claim on a node holds a GPU any more."""
        holders = self._holders.get(uuid)
        if holders is not None:
            holders.pop(node_id, None)
            if not holders:
                del self._holders[uuid]

    def concerned(self, node_id: str, uuids: Sequence[str]) -> list[Candidate]:
        """Return the other nodes whose free GPUs may differ, after claims on these GPUs of one changed."""
        others = self._others(node_id, (name for uuid in uuids for name in self._family(uuid)))
        for uuid in uuids:
            self._forget_device(uuid)
        return others

    def why_not(self, candidate: Candidate, gpu: GpuState) -> str | None:
        """Say why a claim elsewhere, or another node, keeps a GPU from being given out; None where none does.

        A claim on a MIG device that this node declares no more counts as well.
        """
        node_id, uuid = candidate.record.node_id, gpu.uuid
        if uuid in self._holders or uuid in self._parents or uuid in self._devices:  # else none is held
            for uuid in self._family(gpu.uuid):
                for other, holder in self._holders.get(uuid, {}).items():
                    if other != node_id:
                        return f"{holder} on node {other}"
                    if uuid not in candidate.record.gpus and candidate.is_held_by_others(uuid):
                        # of an earlier MIG layout of this node
                        return f"{holder}, as {uuid}"
        if gpu.uuid in self._owners and (owner := self._owner.get(gpu.uuid)) != node_id:
            return f"declared by node {owner} too, which registered later"
        return None

    def _family(self, uuid: str) -> Iterator[str]:
        """List a GPU, its MIG parent and its MIG devices."""
        yield uuid
        parent = self._parents.get(uuid)
        if parent is not None:
            yield parent
        yield from self._devices.get(uuid, ())

    def _replace(self, node_id: str, rank: _Rank, names: frozenset[str]) -> list[Candidate]:
        before_rank, before = self._declared.pop(node_id, (rank, frozenset[str]()))
        if names:
            self._declared[node_id] = (rank, names)
        gone = before if rank != before_rank else before - names
        added = names if rank != before_rank else names - before
        concerned = dict[str, None]()
        for uuid in gone:
            concerned.update(dict.fromkeys(self._drop(uuid, node_id)))
        for uuid in added:
            if self._owner.setdefault(uuid, node_id) != node_id:
                concerned.update(dict.fromkeys(self._add(uuid, node_id)))
        for uuid in before - names:
            self._forget_device(uuid)
        affected = [one for name in concerned if (one := self._candidates.get(name)) is not None]
        for one in affected:
            self._note_duplicates(one)
        own = self._candidates.get(node_id)
        if own is not None and not concerned:
            self._note_duplicates(own)
        return affected

    def _note_duplicates(self, one: Candidate) -> None:
        node_id, duplicates = one.record.node_id, [uuid for uuid in one.record.gpus if uuid in self._owners]
        one.record.duplicate_gpus = frozenset(duplicates)
        one.record.duplicate_nodes = frozenset(
            name for uuid in duplicates for name in self._owners[uuid] if name != node_id
        )
        one.elsewhere = frozenset(uuid for uuid in duplicates if self._owner[uuid] != node_id)

    def _add(self, uuid: str, node_id: str) -> Iterator[str]:
        """Add a node to the others that declare a GPU; returns whom that concerns."""
        owner = self._owner[uuid]
        self._owners.setdefault(uuid, {owner: None})[node_id] = None
        if self._rank(node_id) > self._rank(owner):
            self._owner[uuid] = node_id
        yield from (owner, node_id)

    def _drop(self, uuid: str, node_id: str) -> Iterator[str]:
        """Remove a node from those that declare a GPU; returns whom that concerns."""
        owners = self._owners.get(uuid)
        if owners is None:
            if self._owner.get(uuid) == node_id:
                del self._owner[uuid]
            return
        owners.pop(node_id, None)
        if self._owner[uuid] == node_id:
            self._owner[uuid] = max(owners, key=self._rank)
        if len(owners) == 1:
            del self._owners[uuid]
        yield from (self._owner[uuid], node_id)

    def _rank(self, node_id: str) -> _Rank:
        return self._declared.get(node_id, ((0.0, node_id), frozenset[str]()))[0]

    def _remember_parent(self, uuid: str, parent_uuid: str | None) -> None:
        """Remember the parent of a MIG device."""
        if not parent_uuid or self._parents.get(uuid) == parent_uuid:
            return
        self._drop_parent(uuid)
        self._parents[uuid] = parent_uuid
        self._devices.setdefault(parent_uuid, {})[uuid] = None

    def _forget_device(self, uuid: str) -> None:
        """Forget the parent of a MIG device that no node declares and no claim holds."""
        if uuid not in self._owner and uuid not in self._holders:
            self._drop_parent(uuid)

    def _drop_parent(self, uuid: str) -> None:
        parent = self._parents.pop(uuid, None)
        if parent is not None:
            devices = self._devices[parent]
            devices.pop(uuid, None)
            if not devices:
                del self._devices[parent]

    def _others(self, node_id: str, uuids: Iterable[str]) -> list[Candidate]:
        owners = dict.fromkeys(self._owner.get(uuid, node_id) for uuid in uuids)
        owners.pop(node_id, None)
        return [one for name in owners if (one := self._candidates.get(name)) is not None]
