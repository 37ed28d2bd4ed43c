"""What a seed's world is like: how many nodes, for how long, and which faults it knows.

Each world knows only some of the faults: where everything goes wrong at once, much never comes to pass.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from gpu_agent.registry.settings import Admission, Thresholds


class Fault(StrEnum):
    """What can go wrong."""

    CUT = "connections break"
    SLOW_LINES = "frames are late"
    PARTITION = "some nodes cannot reach the registry"
    STALL = "the registry stands still"
    REGISTRY_CRASH = "the registry crashes"
    CRASH_AT_ACTION = "the registry crashes between two actions"
    DISK_FULL = "nothing can be saved for a while"
    SAVE_ERROR = "single saves fail"
    SLOW_DISK = "saves take seconds"
    HUNG_DISK = "saves have no answer for a while"
    SAVE_UNKNOWN = "single saves are stored and reported as failed"
    WALL_JUMP = "the registry's wall clock jumps"
    AGENT_CRASH = "agents crash"
    AGENT_CRASH_AT_ACTION = "agents crash between two actions"
    POWER_LOSS = "machines lose power"
    AGENT_STOP = "agents are stopped, some to drain"
    AGENT_FREEZE = "agents stand still"
    STATE_LOST = "state directories are lost"
    CLONE = "machines are cloned"
    GPU = "GPUs fail"
    COPIED_GPU = "two machines declare the same GPU"
    DRIVER = "drivers hang"
    MODEL = "models break"
    LOAD = "machines are busy with other work"
    CHANGE = "owners change what their nodes declare"
    SCHEDULER_CRASH = "the scheduler crashes"
    DRAIN = "operators drain and resume"
    CORDON = "operators cordon and uncordon"
    GPU_CORDON = "operators cordon and uncordon single GPUs"
    CHECK = "required checks fail"
    MIG = "owners part GPUs into MIG devices and join them again"
    CONTROL = "operators have nodes register or probe again"
    FORGET = "operators forget nodes"
    TOKENS = "operators rotate, reclaim and revoke"
    SAVE_LATE = "single saves are stored after they were reported as failed, or never"
    TAKEOVER = "another registry takes over from one that ends"
    GATEWAY_CRASH = "gateways crash"
    CUT_OFF = "gateways cannot reach the registry"
    OWNER = "owners drain, resume and probe their machines, and move their workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultProfile:
    """One world's nature. Spans are seconds."""

    nodes: int
    fault_seconds: float
    settle_seconds: float = 1500.0
    thresholds: Thresholds
    auth_off: bool
    wire: bool
    """Whether frames travel as the bytes that the codec writes."""
    commit_seconds: float
    """How long a commit takes, in the mean."""
    gateways: int = 0
    """How many processes hold the connections; with none the registry does."""
    sqlite: bool = False
    faults: Mapping[Fault, float]
    """The mean time between two of each kind."""
    job_every_seconds: float
    most_seconds_on_the_way: float


_SEEDS_PER_FILE = 20
"""One seed in so many keeps its registry's state in a true SQLite file."""

_EVERYDAY = (Fault.DRAIN, Fault.CORDON)
_OF_GPUS = (Fault.GPU_CORDON, Fault.MIG)
_OF_GATEWAYS = (Fault.TAKEOVER, Fault.GATEWAY_CRASH, Fault.CUT_OFF, Fault.SAVE_LATE)
_BY_ITSELF = (*_EVERYDAY, Fault.OWNER, Fault.CHECK, *_OF_GPUS, *_OF_GATEWAYS)
_ADMISSION = Admission(required_checks=("hook", "pcie_link"))
_THRESHOLDS = (
    Thresholds(),
    Thresholds(),
    Thresholds(claim_ttl_seconds=20.0, drain_deadline_seconds=40.0),
    Thresholds(
        heartbeat_interval_seconds=5.0,
        heartbeat_timeout_seconds=15.0,
        warmup_timeout_seconds=20.0,
        offline_retention_seconds=120.0,
        claim_ttl_seconds=30.0,
        drain_deadline_seconds=60.0,
        node_status_interval_seconds=20.0,
    ),
    Thresholds(required_models=("nmt",), min_ready_models=2, claim_ttl_seconds=45.0),
)


def profile_of(seed: int) -> FaultProfile:
    """Draw the profile of a seed's world."""
    dice, owners, gpus = (Random(f"{of} of {seed}") for of in ("profile", "owners", "GPUs"))
    known = [one for one in Fault if one not in _BY_ITSELF and dice.random() < dice.choice((0.15, 0.4))]
    owned = {Fault.OWNER: owners.uniform(20.0, 240.0)} if owners.random() < 1 / 3 else {}
    parted = {one: gpus.uniform(20.0, 240.0) for one in _OF_GPUS if gpus.random() < 1 / 3}
    checks = Random(f"checks of {seed}")
    checked = {Fault.CHECK: checks.uniform(20.0, 240.0)} if checks.random() < 1 / 4 else {}
    links = Random(f"gateways of {seed}")
    gateways = links.choice((0, 0, 0, 1, 2, 3))
    linked = {one: links.uniform(20.0, 240.0) for one in _OF_GATEWAYS if gateways and links.random() < 2 / 3}
    return FaultProfile(
        gateways=gateways,
        nodes=dice.choice((3, 4, 5, 6, 8, 10, 12)),
        fault_seconds=dice.choice((300.0, 600.0, 900.0, 1500.0)),
        thresholds=_admitting(dice.choice(_THRESHOLDS), checked),
        auth_off=dice.random() < 0.4,
        wire=dice.random() < 0.5,
        sqlite=seed % _SEEDS_PER_FILE == 0,
        commit_seconds=dice.choice((0.0005, 0.01, 0.2)),
        faults={one: dice.uniform(20.0, 240.0) for one in (*_EVERYDAY, *known)}
        | owned
        | parted
        | checked
        | linked,
        job_every_seconds=dice.choice((5.0, 15.0, 40.0)),
        most_seconds_on_the_way=dice.choice((0.02, 0.3, 2.0)),
    )


def _admitting(thresholds: Thresholds, faults: Iterable[Fault]) -> Thresholds:
    """Require checks where some can fail."""
    return replace(thresholds, admission=_ADMISSION) if Fault.CHECK in faults else thresholds


def large_profile_of(seed: int, *, nodes: int) -> FaultProfile:
    """Draw the profile of a great fleet's world: shorter and denser."""
    small = profile_of(seed)
    return replace(
        small,
        nodes=nodes,
        fault_seconds=180.0,
        wire=False,
        faults={one: mean / 4 for one, mean in small.faults.items()},
        job_every_seconds=1.0,
    )


def dense_profile(seed: int, *faults: Fault, nodes: int = 8, auth_off: bool = False) -> FaultProfile:
    """Draw a short and dense profile of these faults alone."""
    return replace(
        profile_of(seed),
        nodes=nodes,
        gateways=3 if set(faults) & set(_OF_GATEWAYS) else 0,
        fault_seconds=300.0,
        thresholds=_admitting(Thresholds(), faults),
        auth_off=auth_off,
        faults=dict.fromkeys(faults, 12.0),
        job_every_seconds=5.0,
    )


def profile_for(seed: int, nodes: int | None) -> FaultProfile:
    """Draw the profile of a seed's world, or of a great fleet's."""
    return profile_of(seed) if nodes is None else large_profile_of(seed, nodes=nodes)
