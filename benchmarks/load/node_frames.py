"""What a node of the load says: its registration and its heartbeats, as frames written once.

The figures are those of a machine at work; they decide nothing here.
"""

import json
import os
import random
import struct
import time

from websockets.speedups import apply_mask

_SHORT, _MEDIUM = 126, 65536
"""RFC 6455 §5.2: from here on a length is written in 2, and in 8 bytes."""


def handshake(host: str, *, token: str | None) -> bytes:
    """Write the request with which a node opens its WebSocket."""
    credential = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"GET /ws/node HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{credential}\r\n"
    ).encode()


def frame(payload: bytes, *, opcode: int = 1, fin: bool = True) -> bytes:
    """Write one masked frame."""
    mask, length = os.urandom(4), len(payload)
    first = opcode | (0x80 if fin else 0)
    if length < _SHORT:
        head = struct.pack("!BB", first, 0x80 | length)
    elif length < _MEDIUM:
        head = struct.pack("!BBH", first, 0xFE, length)
    else:
        head = struct.pack("!BBQ", first, 0xFF, length)
    return head + mask + apply_mask(payload, mask)


def registration(machine: str, *, node_id: str | None, gpus: int) -> bytes:
    """Write what a machine with some models and so many GPUs declares."""
    cards = [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "memory_gb": 80,
            "uuid": f"GPU-{machine}-{gpu:04x}-4c5d-9e6f-0123456789ab",
            "memory_mb": 81559,
        }
        for gpu in range(gpus)
    ]
    return json.dumps(
        {
            "type": "node_register",
            "version": "1.0.0",
            "capability_schema_version": "1.1",
            "node_id": node_id,
            "platform": "linux",
            "hardware": {"cpu_cores": 128, "memory_gb": 1024, "gpus": cards},
            "installed_models": [
                {"model_id": "llama-3-70b", "version": "1", "kind": "llm"},
                {"model_id": "whisper-large", "version": "3", "kind": "asr"},
            ],
            "features_supported": {"emotion_detection": True},
            "accept_public_jobs": True,
            "max_concurrent_jobs": 8,
        }
    ).encode()


def heartbeat(machine: str, *, node_id: str, gpus: int, dice: random.Random) -> bytes:
    """Write one heartbeat of that machine."""
    figures = [
        {
            "uuid": f"GPU-{machine}-{gpu:04x}-4c5d-9e6f-0123456789ab",
            "utilization_percent": float(dice.randrange(100)),
            "memory_used_mb": dice.randrange(40_000, 40_064),
            "memory_total_mb": 81559,
            "temperature_c": float(dice.randrange(30, 85)),
            "power_w": round(dice.uniform(60, 700), 1),
            "health": "ok",
            "reasons": [],
        }
        for gpu in range(gpus)
    ]
    return json.dumps(
        {
            "type": "node_heartbeat",
            "node_id": node_id,
            "timestamp": round(time.time() * 1000),
            "resource_usage": {
                "cpu_percent": round(dice.uniform(5, 80), 1),
                "gpu_percent": round(dice.uniform(5, 80), 1),
                "gpu_mem_percent": 49.1,
                "mem_percent": 33.3,
                "running_jobs": 0,
            },
            "gpus": figures,
            "probe_age_seconds": round(dice.uniform(0, 5), 2),
            "running_jobs": [],
        },
        separators=(",", ":"),
    ).encode()
