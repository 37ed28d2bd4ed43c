"""A fleet of ready nodes of many kinds, filed for dispatch."""

import random

from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.node import Declared, NodeRecord, ReportedJobs
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.heartbeat import GpuColumns, Usage
from gpu_agent.wire.messages import Hardware, NodeRegister

PRODUCTS = (  # name, MiB, GPUs per node, share of the fleet
    ("NVIDIA H100 80GB HBM3", 81559, (8,), 8),
    ("NVIDIA H200", 143771, (8,), 3),
    ("NVIDIA A100-SXM4-80GB", 81920, (4, 8), 10),
    ("NVIDIA A100-PCIE-40GB", 40960, (1, 2, 4), 10),
    ("NVIDIA L40S", 46068, (2, 4, 8), 12),
    ("NVIDIA L4", 23034, (1, 2, 4), 15),
    ("NVIDIA A10", 23028, (1, 2), 12),
    ("Tesla T4", 15360, (1, 4), 15),
    ("NVIDIA GeForce RTX 4090", 24564, (1, 2), 10),
    ("NVIDIA GeForce RTX 3090", 24576, (1, 2), 5),
)
FEATURES = (
    "emotion_detection",
    "voice_style_detection",
    "speech_rate_detection",
    "speech_rate_control",
    "speaker_identification",
    "persona_adaptation",
)
MODELS = tuple(f"model-{number:03}" for number in range(200))
MODEL_SHARES = tuple(1 / (rank + 1) for rank in range(len(MODELS)))
ZONES = tuple(f"zone-{letter}" for letter in "abcdefgh")
NODES_PER_RACK = 20
FULL_SHARE = 0.1
PUBLIC_SHARE = 1 / 3


class Fleet:
    """Records as the fleet keeps them, filed in a `Dispatch` as the fleet files them."""

    def __init__(self, size: int, dice: random.Random) -> None:
        self.dice = dice
        self.dispatch = Dispatch(Thresholds(), dice.random)
        self._private = NodeRegister(version="bench", hardware=Hardware(cpu_cores=32, memory_gb=128))
        self._public = self._private.model_copy(update={"accept_public_jobs": True})
        self.records = [self._record(number) for number in range(size)]
        for record in self.records:
            self.dispatch.update(record)

    def heartbeat(self, record: NodeRecord) -> None:
        """Give a node new figures, as a heartbeat does."""
        dice = self.dice
        use = dice.random() ** 2
        shares = [min(max(dice.gauss(use, 0.1), 0.01), 0.99) for _ in record.gpus.kinds]
        sizes = tuple(kind.memory_mb for kind in record.gpus.kinds)
        number = len(sizes)
        figures = GpuColumns(
            uuid=tuple(record.gpus.keys()),
            utilization_percent=tuple(dice.choices(range(101), k=number)),
            memory_used_mb=tuple(int(size * share) for size, share in zip(sizes, shares, strict=True)),
            memory_total_mb=sizes,
            temperature_c=(40.0,) * number,
            power_w=(100.0,) * number,
            processes=(0,) * number,
            health=("ok",) * number,
            reasons=((),) * number,
        )
        record.gpus.write(figures, exactly=bool(record.claims))
        record.liveness.usage = Usage(
            cpu_percent=min(dice.expovariate(1 / 25), 100),
            mem_percent=dice.uniform(10, 88),
            gpu_percent=min(100, dice.expovariate(1 / 30)),
            gpu_mem_percent=100 * use,
        )

    def _record(self, number: int) -> NodeRecord:
        dice = self.dice
        name, memory_mb, sizes, _ = dice.choices(PRODUCTS, [product[3] for product in PRODUCTS])[0]
        gpus = Gpus(
            GpuState(uuid=f"GPU-{number:06}-{index}", name=name, memory_mb=memory_mb)
            for index in range(dice.choice(sizes))
        )
        slots = dice.choice((2, 4, 4, 8))
        declared = Declared(
            registration=self._public if dice.random() < PUBLIC_SHARE else self._private,
            ready_models=frozenset(dice.choices(MODELS, MODEL_SHARES, k=dice.randint(2, 16))),
            features=frozenset(dice.sample(FEATURES, dice.randint(0, 4))),
            labels={"zone": dice.choice(ZONES), "rack": f"rack-{number // NODES_PER_RACK}"},
            max_concurrent_jobs=slots,
        )
        reported = slots if dice.random() < FULL_SHARE else dice.randrange(slots)
        record = NodeRecord(
            node_id=f"node-{number:08X}",
            declared=declared,
            registered_at=0.0,
            status=NodeStatus.READY,
            connection=number,
            gpus=gpus,
            jobs=ReportedJobs.of(None, reported),
        )
        self.heartbeat(record)
        return record
