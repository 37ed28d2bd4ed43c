"""Random nodes and jobs, few enough kinds of each that coincidences are common."""

from random import Random

from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.nodes import gpus, node, usage

NODE_IDS = tuple(f"node-{letter}" for letter in "ABCDEFGH")
JOB_IDS = tuple(f"job-{number}" for number in range(6))
MODELS = ("asr", "nmt", "tts")
FEATURES = ("kv_cache", "emotion_detection")
PRODUCTS = ("NVIDIA L4", "NVIDIA L4", "NVIDIA H100", "NVIDIA RTX 3090", "NVIDIA RTX 4090")

PERCENTS = (None, 0.0, 15.0, 55.0, 91.0)
MOSTLY_READY = (NodeStatus.READY,) * 8 + (NodeStatus.DEGRADED, NodeStatus.DRAINING)


def some(dice: Random, names: tuple[str, ...]) -> frozenset[str]:
    """Draw a part of some names."""
    return frozenset(name for name in names if dice.random() < 1 / 2)


def random_node(dice: Random, node_id: str) -> NodeRecord:
    """Draw a node in any state, eligible more often than not."""
    states = [
        GpuState(
            uuid=f"{node_id}-{place}",
            name=dice.choice(PRODUCTS),
            memory_mb=dice.choice((None, 24576, 24576, 81559)),
            memory_used_mb=dice.choice((None, 0, 500, 9000, 23000)),
            health=dice.choice(("ok", "ok", "ok", "degraded", "lost")),
            is_parent=dice.random() < 0.1,
        )
        for place in range(dice.choice((0, 1, 1, 2, 3, 4)))
    ]
    return node(
        node_id,
        status=dice.choice(MOSTLY_READY),
        connection=dice.choice((1, 1, 1, 1, 1, None)),
        cordoned=dice.choice((None, None, None, None, None, "broken fan")),
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
        count=dice.choice((0, 0, 1, 2)),
        ids=dice.choice((None, None, frozenset({"job-0"}), frozenset({"foreign"}))),
    )


def random_fleet(dice: Random) -> list[NodeRecord]:
    """Draw a node for each id."""
    return [random_node(dice, node_id) for node_id in NODE_IDS]


def random_job(dice: Random) -> Job:
    """Draw a job with few demands."""
    return Job(
        job_id=dice.choice(JOB_IDS),
        required_models=dice.choice(((), (), ("asr",), ("nmt", "tts"))),
        required_features=dice.choice(((), (), ("kv_cache",))),
        public=dice.random() < 1 / 4,
        gpu_count=dice.choice((0, 1, 1, 1, 1, 2, 3)),
        gpu_name=dice.choice((None, None, None, "l4", "RTX", "H100")),
        min_gpu_memory_mb=dice.choice((None, None, 500, 15_000, 24_100, 80_000)),
        labels=dice.choice(({}, {}, {"zone": "a"})),
        allowed_nodes=dice.choice((None, None, None, tuple(dice.sample(NODE_IDS, 3)))),
        affinity_key=dice.choice((None, "session-1", "session-2")),
    )
