"""What the registry holds for nodes with as many models as a node may declare.

    python benchmarks/registration_memory.py [--nodes N] [--models N] [--check]

Registers nodes, each by a frame of its own, and prints by how much the resident memory grew, in all and for
each model: with the same models on every node, and with models that no other node has. `--check` exits 1
when a model takes more than 400 bytes.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from gpu_agent.registry.events import HeartbeatReceived, RegistrationReceived, Stored
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister

_Message = TypeVar("_Message", NodeHeartbeat, NodeRegister)

TARGET_BYTES = 400
MIB = 1024 * 1024


def frame(node: int, models: int, *, shared: bool) -> bytes:
    """Write a registration."""
    owner = "all" if shared else f"{node:05}"
    installed = [
        {"model_id": f"organisation-{owner}/model-{number:06}-instruct", "version": "main", "kind": "llm"}
        for number in range(models)
    ]
    gpus = [{"name": "NVIDIA H100", "memory_gb": 80, "uuid": f"GPU-{node}-{place}"} for place in range(8)]
    message = {
        "type": "node_register",
        "version": "1.0.0",
        "capability_schema_version": "1.1",
        "hardware": {"cpu_cores": 64, "memory_gb": 512, "gpus": gpus},
        "installed_models": installed,
    }
    return json.dumps(message, separators=(",", ":")).encode()


def read(written: bytes, kind: type[_Message]) -> _Message:
    """Read a frame of a kind."""
    message = decode_from_node(written)
    if not isinstance(message, kind):
        raise TypeError(message)
    return message


def register(fleet: Fleet, node: int, models: int, *, shared: bool) -> int:
    """Register a node and let it send a heartbeat; returns the size of the frame."""
    written = frame(node, models, shared=shared)
    output = fleet.handle(
        RegistrationReceived(node, read(written, NodeRegister), f"node-{node}"), float(node)
    )
    if output.number is None:
        raise RuntimeError(output.effects)
    fleet.handle(Stored(output.number), float(node))
    usage = {"cpu_percent": 1, "mem_percent": 1}
    heartbeat = {"type": "node_heartbeat", "node_id": f"node-{node}", "timestamp": 0, "resource_usage": usage}
    message = read(json.dumps(heartbeat).encode(), NodeHeartbeat)
    fleet.handle(HeartbeatReceived(node, Heartbeat.of(message)), float(node))
    return len(written)


def resident_bytes() -> int:
    """Return this process's resident memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(nodes: int, models: int, *, shared: bool) -> float:
    """Print what nodes take; returns the bytes for each model."""
    fleet = Fleet(Thresholds(), lambda: 0.5, auth_off=True)
    register(fleet, nodes, models, shared=shared)  # what one registration takes once and for all
    before = resident_bytes()
    sizes = [register(fleet, node, models, shared=shared) for node in range(nodes)]
    grown = resident_bytes() - before
    each = grown / (nodes * models)
    kind = "the same models" if shared else "models of its own"
    print(
        f"{nodes} nodes with {kind}, {models} each, frames of {sizes[0] / MIB:.2f} MiB: "
        f"{grown / MIB:.1f} MiB, {grown / nodes / MIB:.2f} MiB a node, {each:.0f} bytes a model"
    )
    return each


def main() -> int:
    """Measure both kinds, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--models", type=int, default=4096)
    parser.add_argument("--check", action="store_true", help="exit 1 above the target")
    parser.add_argument("--only", choices=("shared", "own"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only is not None:
        return int(measure(asked.nodes, asked.models, shared=asked.only == "shared") > TARGET_BYTES)
    arguments = ["--nodes", str(asked.nodes), "--models", str(asked.models)]
    above = [
        subprocess.run([sys.executable, __file__, *arguments, "--only", kind], check=False).returncode
        for kind in ("shared", "own")
    ]
    print(f"target: at most {TARGET_BYTES} bytes a model: {'MISSED' if any(above) else 'met'}")
    return int(asked.check and any(above))


if __name__ == "__main__":
    sys.exit(main())
