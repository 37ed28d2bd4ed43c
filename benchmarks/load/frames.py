"""Frames of a node with eight GPUs, written once: its registration, and heartbeats that differ."""

import json
import random
import struct

GPUS = 8
VARIANTS = 3
"""Different heartbeats that each node sends in turn."""

MASK = b"\x1f\x2e\x3d\x4c"


def frame(payload: bytes) -> bytes:
    """Write one masked text frame."""
    masked = bytes(byte ^ MASK[at & 3] for at, byte in enumerate(payload))
    return struct.pack("!BBH", 0x81, 0xFE, len(payload)) + MASK + masked


def registration_of(node: int) -> bytes:
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


def heartbeats_of(node: int, memory_moves_mb: int) -> list[bytes]:
    """Write the heartbeats that a node sends in turn; each GPU's memory moves by so much at most."""
    dice = random.Random(node)
    load, loaded_mb = dice.uniform(5, 85), dice.randrange(81_000 - memory_moves_mb)
    memory = range(loaded_mb, loaded_mb + memory_moves_mb)
    return [frame(_heartbeat(node, sequence, dice, load=load, memory=memory)) for sequence in range(VARIANTS)]


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
