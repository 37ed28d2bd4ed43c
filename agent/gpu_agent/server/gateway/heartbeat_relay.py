"""Which heartbeats a gateway forwards to the leader: those with news since the last one that it forwarded.

The leader counts any other heartbeat as if the last whole one had come again. So a heartbeat is news where
the leader could decide or log something else by it: health, jobs, processes, models, declared parts, load as
dispatch knows it, free memory in the steps of dispatch, the use of claimed GPUs, how old its reading is.
Figures vary within these bounds all the time; the exact ones are fetched when somebody asks for them.

Where a node's load and its free memory alone are new, amounts, the leader gets these, with those of all other
nodes of a second, and no whole heartbeat.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from gpu_agent.registry.claim_telemetry import IDLE_PERCENT, OLDEST_FIGURES_SECONDS
from gpu_agent.registry.dispatch.candidate import LIMITS, load_of, nearness
from gpu_agent.registry.events import Amounts
from gpu_agent.registry.gpus import STEP_MB
from gpu_agent.registry.health import MAX_PERCENT
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.heartbeat import GpuColumns, Heartbeat
from gpu_agent.wire.messages import Hardware

HEARTBEATS_PER_MEASUREMENT = 16
"""The round trip is compared at every 16th heartbeat."""

OLDEST_SECONDS = 60.0
"""A heartbeat is news after this time at the latest: no listed figure is older."""

_NO_SIZES: Mapping[str, int | None] = {}


@dataclass(slots=True)
class _Sender:
    """The state of the node on one connection."""

    sizes: Mapping[str, int | None] = field(default_factory=dict)
    """The memory of each GPU by UUID, in MiB, as declared."""
    listed: tuple[str, ...] = ()
    """The UUIDs of its last heartbeat."""
    in_order: tuple[int | None, ...] = ()
    """The memory of each of them."""
    node_id: str | None = None
    """Of the node that registered here last."""
    last: object = None
    """What the leader knows besides amounts; None before the first heartbeat of a registration."""
    amounts: object = None
    """The amounts that it knows."""
    handed_on_at: float = 0.0
    near: int | None = None
    exact: bool = False
    """Whether it has claims: then dispatch knows its free memory to the MiB, and each claim how busy its GPUs
    are, in tenths."""
    heartbeats: int = 0

    def declare(self, hardware: Hardware) -> None:
        """Take over what the node declares."""
        self.sizes, self.listed, self.in_order = _sizes(hardware), (), ()


class News(Enum):
    """What the leader must hear of a heartbeat, besides that it came."""

    NONE = auto()
    AMOUNTS = auto()
    """How loaded the node is, and how much memory is in use: nothing else is new."""
    WHOLE = auto()


class HeartbeatRelay:
    """Decides which heartbeats are news on each connection of one gateway."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._senders: dict[int, _Sender] = {}
        self.judge_by(thresholds)

    def judge_by(self, thresholds: Thresholds) -> None:
        """Judge by the leader's thresholds."""
        self._thresholds = thresholds
        self._probe_age_limit_seconds = thresholds.probe_age_limit_seconds

    def declared(self, connection: int, hardware: Hardware) -> None:
        """Note the GPUs that a node declares on a connection."""
        self._senders.setdefault(connection, _Sender()).declare(hardware)

    def news_of(
        self,
        connection: int,
        heartbeat: Heartbeat,
        now: float,
        *,
        round_trip: Callable[[], float | None] = lambda: None,
    ) -> News:
        """Say what of a heartbeat must reach the leader; `round_trip` measures that of the connection."""
        sender = self._senders.setdefault(connection, _Sender())
        if heartbeat.parts is not None and heartbeat.parts.hardware is not None:
            sender.declare(heartbeat.parts.hardware)
        said, amounts = self._said(heartbeat, sender)
        sender.heartbeats += 1
        near = sender.near
        if sender.heartbeats % HEARTBEATS_PER_MEASUREMENT == 0:
            near = nearness(round_trip())
        is_new = said != sender.last or near != sender.near or heartbeat.node_id != sender.node_id
        differs, sender.amounts = amounts != sender.amounts, amounts
        if is_new or (differs and sender.exact) or now - sender.handed_on_at >= OLDEST_SECONDS:
            sender.last, sender.near, sender.handed_on_at = said, near, now
            return News.WHOLE
        return News.AMOUNTS if differs else News.NONE

    def registered(self, connection: int, node_id: str) -> None:
        """Note that a node has registered on a connection: its next heartbeat is news."""
        sender = self._senders.get(connection)
        if sender is not None:
            sender.node_id, sender.last = node_id, None

    def refused(self, connection: int) -> None:
        """Note a refusal of the leader: the next heartbeat is news, and so is refused too."""
        sender = self._senders.get(connection)
        if sender is not None:
            sender.last = None

    def set_exact(self, connection: int, *, exact: bool) -> None:
        """Forward every change of a node's memory and of its GPUs' use from now on; or memory in steps."""
        sender = self._senders.get(connection)
        if sender is not None:
            sender.exact, sender.last = exact, None

    def leader_lost(self) -> None:
        """Forget what was forwarded: the next heartbeat of each node is news for the next leader."""
        for sender in self._senders.values():
            sender.last, sender.exact = None, False

    def forget(self, connection: int) -> None:
        """Remove a connection that is closed."""
        self._senders.pop(connection, None)

    def _said(self, heartbeat: Heartbeat, sender: _Sender) -> tuple[object, object]:
        """Return values that differ exactly where the leader could decide or log something else.

        The second one holds the amounts.
        """
        usage, gpus, age = heartbeat.usage, heartbeat.gpus, heartbeat.probe_age_seconds
        percent, load = usage.gpu_percent, load_of(usage, self._thresholds)
        listed = memory = use = None
        if gpus is not None:
            if sender.exact:
                memory, use = gpus.memory_used_mb, _use(gpus)
            else:
                memory = _steps(gpus, sender)
            unknown = memory if None in gpus.memory_used_mb else None
            listed = gpus.uuid, gpus.health, gpus.reasons, gpus.processes, unknown
        said = (
            heartbeat.running_jobs,
            usage.running_jobs,
            load[:LIMITS],
            percent is None or 0 <= percent <= MAX_PERCENT,
            age is not None and (age > self._probe_age_limit_seconds, age > OLDEST_FIGURES_SECONDS),
            listed,
            heartbeat.parts,
        )
        return said, (load[LIMITS:], usage.gpu_mem_percent if gpus is None else None, memory, use)


def amounts_of(heartbeat: Heartbeat) -> Amounts:
    """Return the amounts of a heartbeat of which nothing else is new."""
    gpus = heartbeat.gpus
    used = None if gpus is None else tuple(one for one in gpus.memory_used_mb if one is not None)
    return Amounts(*heartbeat.usage[:-1], used)


def _use(gpus: GpuColumns) -> tuple[object, ...]:
    known = gpus.utilization_percent
    return tuple(None if one is None else (one <= IDLE_PERCENT, one // 10) for one in known)


def _steps(gpus: GpuColumns, sender: _Sender) -> tuple[int | None, ...]:
    """Return the free memory of each in steps of dispatch; the memory in use where its size is unknown."""
    if gpus.uuid != sender.listed:
        sender.listed = gpus.uuid
        sender.in_order = tuple(sender.sizes.get(uuid) for uuid in gpus.uuid)
    return tuple(
        [
            used if used is None or size is None else (size - used) // STEP_MB
            for size, used in zip(sender.in_order, gpus.memory_used_mb, strict=True)
        ]
    )


def _sizes(hardware: Hardware) -> Mapping[str, int | None]:
    gpus = hardware.gpus or ()
    return {one.uuid: one.memory_mb for one in gpus if one.uuid} if gpus else _NO_SIZES
