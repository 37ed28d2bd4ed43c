"""Ten thousand machines in a registry that is played: their messages arrive without sockets."""

import json
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from gpu_agent.registry.events import HeartbeatReceived, RegistrationReceived, UnregistrationReceived
from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Credential, CredentialKind, FreshToken
from gpu_agent.wire.api import NewToken
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister, NodeUnregister
from tests.server.harness import until
from tests.server.web.fleet import Fleet, Machine, busy

PRODUCTS = (  # prefix of the hostname, name, MiB, GPUs, share of the fleet
    ("h100", "NVIDIA H100 80GB HBM3", 81_559, 8, 20),
    ("h200", "NVIDIA H200", 143_771, 8, 6),
    ("b200", "NVIDIA B200", 183_359, 8, 2),
    ("mi300", "AMD Instinct MI300X", 196_608, 8, 6),
    ("a100", "NVIDIA A100-SXM4-80GB", 81_920, 8, 14),
    ("l40s", "NVIDIA L40S", 46_068, 4, 16),
    ("l4", "NVIDIA L4", 23_034, 4, 16),
    ("t4", "Tesla T4", 15_360, 4, 12),
    ("desk", "NVIDIA GeForce RTX 4090", 24_564, 2, 8),
)
MODELS = ("llama-3.3-70b-instruct", "qwen3-32b", "whisper-large-v3", "bge-m3", "flux.1-dev")
_FIRST_CONNECTION = 10_000_000
"""Far above the numbers of real ones: the registry sends to none of these."""
_UNKNOWN = dict.fromkeys(
    ("utilization_percent", "memory_used_mb", "temperature_c", "power_w", "processes"), None
)
_FAULTS = (
    {**_UNKNOWN, "health": "lost", "reasons": ["xid_79", "gpu_lost"]},
    {**_UNKNOWN, "health": "unknown", "reasons": ["nvml_hung"]},
    {"health": "degraded", "reasons": ["hw_thermal_slowdown"], "temperature_c": 94.0},
    {"health": "degraded", "reasons": ["row_remap_pending"]},
)


@dataclass(frozen=True, slots=True)
class _Shares:
    """How many of a hundred machines are in a state."""

    claimed: float = 62.0
    idle: float = 3.0
    unclaimed: float = 1.5
    faulty: float = 0.6
    offline: float = 0.3
    cordoned: float = 0.5
    draining: float = 0.3


SHARES = _Shares()


async def join_many(fleet: Fleet, *, first: int, machines: int) -> "list[Played]":
    """Let so many machines join, from a number on: each number is the same machine in each run.

    Returns those whose claims are to become idle, by `beat_again`.
    """
    made = await fleet.service.tokens.create_join(uses=machines)
    assert isinstance(made, NewToken), made
    join = Credential(CredentialKind.JOIN, made.token_id)
    played = [Played(fleet, number, join) for number in range(first, first + machines)]
    while waiting := [one for one in played if not one.is_acknowledged]:
        for one in waiting:
            one.register()
        with suppress(AssertionError):  # on a busy machine the store is late, and the registry refuses them
            await until(lambda: all(one.is_acknowledged for one in played), what="all are registered")
    for one in played:
        one.beat(times=3)
        await one.work()
        one.beat(times=3)
        await one.meet_fate()
    return [one for one in played if one.is_idle]


async def beat_again(played: "Iterable[Played]") -> None:
    """Let machines report once more."""
    for one in played:
        one.beat(times=2)


def waiting_jobs(number: int) -> list[Job]:
    """Return jobs that no machines have room for now."""
    return [
        Job(job_id=f"train-{place:03}", gpu_count=8, gpu_name="B200", nodes=120, wait_seconds=3600.0)
        for place in range(number)
    ]


class Played:
    """One machine, which says what it is, what it does and how it is."""

    def __init__(self, fleet: Fleet, number: int, join: Credential) -> None:
        dice = self._dice = random.Random(number)  # noqa: S311 - the same each time
        prefix, gpu, memory_mb, gpus, _ = dice.choices(PRODUCTS, [one[4] for one in PRODUCTS])[0]
        labels, models = {"zone": dice.choice("abcd"), "rack": f"{number // 16:03}"}, dice.sample(MODELS, 2)
        self.machine = Machine(f"{prefix}-{number:05}", gpu, gpus, memory_mb, labels, tuple(models))
        self.machine.cpu_percent = dice.uniform(5, 60)
        self.machine.node_id = f"node-{number:08X}"
        self._fleet, self._join, self._number = fleet, join, number
        self._connection = _FIRST_CONNECTION + number
        self._handle = fleet.service._loop.handle
        self.is_idle = False
        """Whether it has claims that nobody uses."""

    @property
    def is_acknowledged(self) -> bool:
        """Whether its registration is stored."""
        record = self._fleet.service.record(self.machine.node_id)
        return record is not None and record.acknowledged

    def register(self) -> None:
        """Declare the machine."""
        number, message = (
            self._number,
            NodeRegister.model_validate_json(json.dumps(self.machine.registration())),
        )
        token = FreshToken(f"t{number:07}", f"secret of {number}", f"digest of {number}")
        self._handle(
            RegistrationReceived(
                self._connection, message, self.machine.node_id, self._join, "10.0.0.7", token
            )
        )

    def beat(self, *, times: int) -> None:
        """Report how it is."""
        message = NodeHeartbeat.model_validate_json(json.dumps(self.machine.heartbeat()))
        for _ in range(times):
            self._handle(HeartbeatReceived(self._connection, Heartbeat.of(message)))

    async def work(self) -> None:
        """Let jobs use it, and break what is broken."""
        machine, dice = self.machine, self._dice
        state = dice.uniform(0, 100)
        if state < SHARES.claimed + SHARES.idle:
            self.is_idle = state >= SHARES.claimed
            await self._claim(is_used=not self.is_idle)
        elif state < SHARES.claimed + SHARES.idle + SHARES.unclaimed:
            machine.figures[0] = self._at_work()
        if dice.uniform(0, 100) < SHARES.faulty:
            machine.figures[dice.randrange(machine.count)] = dict(dice.choice(_FAULTS))

    async def meet_fate(self) -> None:
        """Let an operator act on it, or its agent stop."""
        service, node_id, dice = self._fleet.service, self.machine.node_id, self._dice
        if dice.uniform(0, 100) < SHARES.cordoned:
            await service.cordon(node_id, reason="fan replaced, watch until Thursday", by="ana")
        if dice.uniform(0, 100) < SHARES.draining:
            await service.drain(node_id, reason="new driver 570.86", by="ana")
        if dice.uniform(0, 100) < SHARES.offline:
            goodbye = NodeUnregister.model_validate({"node_id": node_id, "reason": "shutdown"})
            self._handle(UnregistrationReceived(self._connection, goodbye))

    async def _claim(self, *, is_used: bool) -> None:
        machine, half = self.machine, self.machine.count // 2
        sizes = [machine.count] if self._dice.random() < 0.5 else [half, max(1, half - 1)]
        machine.jobs = tuple(f"job-{machine.hostname}-{place}" for place in range(len(sizes)))
        for job_id, size in zip(machine.jobs, sizes, strict=True):
            await self._fleet.claim(job_id, machine, gpu_count=size)
        claimed = {gpu.uuid for gpu in self._fleet.known(machine).gpus if gpu.claimed_by}
        for place, uuid in enumerate(machine.uuids()):
            if is_used and uuid in claimed:
                machine.figures[place] = self._at_work()

    def _at_work(self) -> dict[str, object]:
        use, full = self._dice.uniform(55, 100), self._dice.uniform(0.4, 0.95)
        return busy(use, int(self.machine.memory_mb * full))
