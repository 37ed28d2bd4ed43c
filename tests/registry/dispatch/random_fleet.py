"""Random nodes and jobs, few enough kinds of each that coincidences are common."""
# ruff: noqa: ANN401 - facts of any type are passed through as they are

from random import Random
from typing import Any

from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Job
from gpu_agent.registry.node import GpuCordon, NodeRecord, ReportedJobs
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.nodes import gpus, node, usage

NODE_IDS = tuple(f"node-{letter}" for letter in "ABCDEFGH")
JOB_IDS = tuple(f"job-{number}" for number in range(6))
MODELS = ("asr", "nmt", "tts")
FEATURES = ("kv_cache", "emotion_detection")
PRODUCTS = ("NVIDIA L4", "NVIDIA L4", "NVIDIA H100", "NVIDIA RTX 3090", "NVIDIA RTX 4090")

LABELS: tuple[dict[str, str | tuple[str, ...]], ...] = (
    {},
    {},
    {"zone": "a"},
    {"zone": ("a", "b")},
    {"zone": "b", "rack": ("a", "c")},
)
PERCENTS = (None, 0.0, 15.0, 55.0, 91.0)
MOSTLY_READY = (NodeStatus.READY,) * 8 + (NodeStatus.DEGRADED, NodeStatus.DRAINING)


def some(dice: Random, names: tuple[str, ...]) -> frozenset[str]:
    """Draw a part of some names."""
    return frozenset(name for name in names if dice.random() < 1 / 2)


def random_node(dice: Random, node_id: str) -> NodeRecord:
    """Draw a node in any state, eligible more often than not."""
    states = [random_gpu(dice, node_id, place) for place in range(dice.choice((0, 1, 1, 2, 3, 4)))]
    if dice.random() < 1 / 5:
        states += random_mig(dice, node_id)
    return node(
        node_id,
        status=dice.choice(MOSTLY_READY),
        registered_at=float(dice.randrange(5)),
        connection=dice.choice((1, 1, 1, 1, 1, None)),
        last_heartbeat_at=0.0,
        cordoned=dice.choice((None, None, None, None, None, "broken fan")),
        gpu_cordons={
            one.uuid: GpuCordon(reason="ECC errors", by="ada") for one in states if dice.random() < 0.1
        },
        gpus=gpus(*states),
        usage=usage(
            cpu=dice.choice((5.0, 5.0, 5.0, 95.0)),
            gpu_percent=dice.choice(PERCENTS),
            gpu_memory=dice.choice(PERCENTS),
        ),
        ready_models=some(dice, MODELS),
        features=some(dice, FEATURES),
        labels={name: dice.choice("ab") for name in some(dice, ("zone", "rack"))},
        accept_public_jobs=dice.random() < 1 / 2,
        max_concurrent_jobs=dice.choice((0, 1, 2, 3, 3)),
        jobs=reported_jobs(dice),
    )


def reported_jobs(dice: Random) -> ReportedJobs:
    """Draw what a node reports about its jobs."""
    ids = dice.choice((None, None, frozenset({"job-0"}), frozenset({"foreign"})))
    return ReportedJobs(ids=ids, count=dice.choice((0, 0, 1, 2)))


def random_gpu(dice: Random, node_id: str, place: int, **facts: Any) -> GpuState:
    """Draw a GPU; one in twelve is declared by other nodes too."""
    uuid = f"shared-{dice.randrange(2)}-{place}" if dice.random() < 1 / 12 else f"{node_id}-{place}"
    drawn: dict[str, Any] = {
        "uuid": uuid,
        "name": dice.choice(PRODUCTS),
        "memory_mb": dice.choice((None, 24576, 24576, 81559)),
        "memory_used_mb": dice.choice((None, 0, 500, 9000, 23000)),
        "compute_capability": dice.choice((None, "7.5", "8.9", "9.0")),
        "processes": dice.choice((None, 0, 0, 0, 1)),
        "health": dice.choice(("ok", "ok", "ok", "degraded", "lost")),
    }
    if drawn["health"] == "degraded":
        drawn["reasons"] = dice.choice(((), ("fabric_incomplete",), ("xid_48",), ("hw_slowdown",)))
    return GpuState(**(drawn | facts))


def random_mig(dice: Random, node_id: str) -> list[GpuState]:
    """Draw a MIG parent and its devices."""
    parent = f"{node_id}-P"
    devices = [
        random_gpu(
            dice, node_id, place, uuid=f"{parent}-{place}", name="NVIDIA H100 MIG 3g.40gb", parent_uuid=parent
        )
        for place in range(dice.choice((1, 2, 3)))
    ]
    return [random_gpu(dice, node_id, 9, uuid=parent, name="NVIDIA H100", is_parent=True), *devices]


def random_fleet(dice: Random) -> list[NodeRecord]:
    """Draw a node for each id."""
    return [random_node(dice, node_id) for node_id in NODE_IDS]


def random_job(dice: Random) -> Job:
    """Draw a job with few demands: a slot, whole GPUs, shared memory, or a gang of one of these."""
    sharing = dice.choice((None, "exclusive", "exclusive", "memory"))
    memory = (15_000, 24_100, 80_000) if sharing == "memory" else (None, None, 24_100, 80_000)
    return Job(
        job_id=dice.choice(JOB_IDS),
        required_models=dice.choice(((), (), ("asr",), ("nmt", "tts"))),
        required_features=dice.choice(((), (), ("kv_cache",))),
        public=dice.random() < 1 / 4,
        gpu_count=None if sharing is None else dice.choice((1, 1, 1, 2, 3)),
        gpu_sharing=sharing,
        gpu_name=dice.choice((None, None, None, "l4", "RTX", "H100", "h100 mig")),
        min_gpu_memory_mb=dice.choice((500, *memory) if sharing == "memory" else memory),
        min_compute_capability=dice.choice((None, None, None, "8.0", "8.9", "12.0")),
        labels=dice.choice(LABELS),
        allowed_nodes=dice.choice((None, None, None, tuple(dice.sample(NODE_IDS, 3)))),
        excluded_nodes=dice.choice(((), (), tuple(dice.sample(NODE_IDS, 2)))),
        nodes=dice.choice((1, 1, 1, 1, 2, 3)),
        affinity_key=dice.choice((None, "session-1", "session-2")),
    )
