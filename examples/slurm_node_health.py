#!/usr/bin/env python3
"""Slurm's HealthCheckProgram: drains this node in Slurm while the registry gives it no jobs, with the reason.

The agent of this machine says what the registry thinks of the node: a broken GPU, a missing model, a drain by
an operator. In slurm.conf: `HealthCheckProgram=/etc/slurm/slurm_node_health.py`, `HealthCheckInterval=60`,
`HealthCheckNodeState=ANY`. It resumes only a node that it has drained itself. Where the agent or the registry
is away it changes nothing. Needs no package besides Slurm's commands and `gpu-agent`.
"""

import json
import os
import socket
import subprocess
import sys

MARK = "gpu-agent: "
FIT = ("ready", "registering")
"""Every other status drains the node. One that registers gets no jobs either, and is past it in a minute."""


def output_of(*command: str) -> str:
    """Run a command; returns what it prints, empty where it fails."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=20, check=False).stdout  # noqa: S603 - Slurm's commands and ours


def main() -> int:
    """Compare the registry's status with Slurm's state, and correct the latter."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]
    status = json.loads(output_of("gpu-agent", "status", "--json") or "{}").get("status")
    if status is None or not status["current"]:
        return 0  # no agent answers, or no registry does
    unfit = status["status"] not in FIT
    state, _, reason = output_of("sinfo", "--noheader", "--nodes", node, "--format", "%T %E").partition(" ")
    drained, ours = "drain" in state, reason.startswith(MARK)
    wanted = f"{MARK}{status['reason_code']}: {status['reason']}".replace('"', "'")[:200]
    if unfit and (not drained or (ours and reason.strip() != wanted)):
        output_of("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={wanted}")
    elif status["status"] == "ready" and drained and ours:
        output_of("scontrol", "update", f"NodeName={node}", "State=UNDRAIN")
    return 0


if __name__ == "__main__":
    sys.exit(main())
