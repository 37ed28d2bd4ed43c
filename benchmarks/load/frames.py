"""Frames of nodes, written once: registrations, and heartbeats that differ.

A node of ours has eight GPUs and reports the figures of each. An older node reports none, and repeats its
models and their states in each heartbeat.
"""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

GPUS = 8
VARIANTS = 3
"""Different heartbeats that each node sends in turn."""

MASK = b"\x1f\x2e\x3d\x4c"

_OLDER_MODELS = ("asr-large-v3", "nmt-zh-en-600m", "tts-multilingual")


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of node: what each registers with, and the heartbeats that it sends in turn."""

    name: str
    registration_of: Callable[[int], bytes]
    heartbeats_of: Callable[[int], list[bytes]]


def frame(payload: bytes) -> bytes:
    """Write one masked text frame."""
    masked = bytes(byte ^ MASK[at & 3] for at, byte in enumerate(payload))
    return struct.pack("!BBH", 0x81, 0xFE, len(payload)) + MASK + masked


def _registration_of(node: int) -> bytes:
    """Write what a machine with eight GPUs registers with."""
    gpus = [
        {"name": "NVIDIA H100 80GB HBM3", "memory_gb": 80, "uuid": _uuid(node, gpu), "memory_mb": 81559}
        for gpu in range(GPUS)
    ]
    registration = {
        "type": "node_register",
        "version": "1.0.0",
        "capability_schema_version": "1.1",
        "node_id": f"node-{node:08X}",
        "platform": "linux",
        "hardware": {"cpu_cores": 128, "memory_gb": 1024, "gpus": gpus},
        "installed_models": [{"model_id": "llama-3-70b", "version": "1", "kind": "llm"}],
        "accept_public_jobs": True,
        "max_concurrent_jobs": 8,
    }
    return json.dumps(registration).encode()


def _heartbeats_of(memory_moves_mb: int) -> Callable[[int], list[bytes]]:
    """Return what writes a node's heartbeats; each GPU's memory moves by so much at most."""

    def of(node: int) -> list[bytes]:
        dice = random.Random(node)
        load, loaded_mb = dice.uniform(5, 85), dice.randrange(81_000 - memory_moves_mb)
        memory = range(loaded_mb, loaded_mb + memory_moves_mb)
        return [
            frame(_heartbeat(node, sequence, dice, load=load, memory=memory)) for sequence in range(VARIANTS)
        ]

    return of


def _heartbeat(node: int, sequence: int, dice: random.Random, *, load: float, memory: range) -> bytes:
    heartbeat = {
        "type": "node_heartbeat",
        "node_id": f"node-{node:08X}",
        "timestamp": 1_790_000_000_000 + sequence,
        "resource_usage": {
            "cpu_percent": round(load + dice.uniform(-3, 3), 1),
            "gpu_percent": round(load + dice.uniform(-3, 3), 1),
            "gpu_mem_percent": 51.2,
            "mem_percent": 33.3,
            "running_jobs": 2,
        },
        "gpus": [
            {
                "uuid": _uuid(node, gpu),
                "utilization_percent": float(dice.randrange(100)),
                "memory_used_mb": dice.choice(memory),
                "memory_total_mb": 81559,
                "temperature_c": float(dice.randrange(30, 85)),
                "power_w": round(dice.uniform(60, 700), 1),
                "health": "ok",
                "reasons": [],
            }
            for gpu in range(GPUS)
        ],
        "probe_age_seconds": round(dice.uniform(0, 5), 2),
        "running_jobs": ["job-1", "job-2"],
        "sequence": sequence,
    }
    return json.dumps(heartbeat, separators=(",", ":")).encode()


def _uuid(node: int, gpu: int) -> str:
    return f"GPU-{node:08x}-{gpu:04x}-4c5d-9e6f-0123456789ab"


def _older_registration_of(node: int) -> bytes:
    registration = {
        "type": "node_register",
        "node_id": f"node-{node:08X}",
        "version": "2.0.0",
        "platform": "windows",
        "hardware": {
            "cpu_cores": 16,
            "memory_gb": 32,
            "gpus": [{"name": "NVIDIA GeForce RTX 4090", "memory_gb": 24}],
        },
        "installed_models": _older_models(),
        "features_supported": {"emotion_detection": False},
        "accept_public_jobs": True,
    }
    return json.dumps(registration).encode()


def _older_heartbeats_of(node: int) -> list[bytes]:
    dice = random.Random(node)
    load = dice.uniform(5, 85)
    return [frame(_older_heartbeat(node, sequence, dice, load=load)) for sequence in range(VARIANTS)]


def _older_heartbeat(node: int, sequence: int, dice: random.Random, *, load: float) -> bytes:
    heartbeat = {
        "type": "node_heartbeat",
        "node_id": f"node-{node:08X}",
        "timestamp": 1_790_000_000_000 + sequence,
        "resource_usage": {
            "cpu_percent": round(load + dice.uniform(-3, 3), 1),
            "gpu_percent": round(load + dice.uniform(-3, 3), 1),
            "gpu_mem_percent": 51.2,
            "mem_percent": 33.3,
            "running_jobs": 0,
        },
        "installed_models": _older_models(),
        "capability_state": dict.fromkeys(_OLDER_MODELS, "ready"),
    }
    return json.dumps(heartbeat, separators=(",", ":")).encode()


def _older_models() -> list[dict[str, object]]:
    kinds = zip(_OLDER_MODELS, ("asr", "nmt", "tts"), strict=True)
    return [{"model_id": name, "kind": kind, "version": "1.0.0", "enabled": True} for name, kind in kinds]


WORKLOADS = (
    Workload("older node's shape", _older_registration_of, _older_heartbeats_of),
    Workload("8 GPUs, settled", _registration_of, _heartbeats_of(64)),
    Workload("8 GPUs, jumping", _registration_of, _heartbeats_of(70_000)),
)
"""How far each GPU's memory use moves between heartbeats: up to 64 MiB around a loaded model, or anywhere."""
