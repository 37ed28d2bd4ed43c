"""Kills a real `registry serve` many times under 16 clients that claim few GPUs, and checks what happened.

No GPU is given to two jobs, no gang is partial, no valid claim is lost, and a large job is not starved. Run
it as `make claim-history RUNS=200`; a violation ends it.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.claim_history.clients import LARGE, Client
from tests.e2e.claim_history.machines import Machines
from tests.e2e.claim_history.world import World
from tests.programs import Registry, free_port
from tests.waiting import patience

NODES = {f"node-{letter}": tuple(f"GPU-{letter}{place}" for place in range(4)) for letter in "abc"}
CLIENTS = 16
RESERVE_AFTER_SECONDS = 2.0
QUIET_EVERY = 25
"""After so many kills the registry lives for a while, so that a large job may show that it is not starved."""
MOST_WAIT_SECONDS = 58.0
"""For a large job in a quiet time: 33 s in which a job that gave up before it keeps its place, and so the
reservation (§5.4); then the longest claim with what it holds, and slack."""


class Campaign:
    """One database, one registry after the other."""

    def __init__(self, folder: Path, running: ExitStack, *, seed: int) -> None:
        self._folder, self._running = folder, running
        self._dice = random.Random(seed)  # noqa: S311
        self._node_port, self._operator_port = free_port(), free_port()
        self.world = World()
        self._registry = self._serve()
        machines = Machines(self.world, f"ws://127.0.0.1:{self._node_port}/ws/node", NODES)
        machines.start()
        running.callback(machines.stop)
        self._registry.await_ready(len(NODES), within_seconds=60)
        self._clients = [
            Client(self.world, self._operator_port, number=number, seed=seed + number)
            for number in range(CLIENTS)
        ]
        for client in self._clients:
            client.start()

    def kill(self) -> None:
        """Kill the registry after a moment of work, and start the next one."""
        time.sleep(self._dice.uniform(0.2, 1.5))
        self._registry.send(signal.SIGKILL)
        code = self._registry.wait(patience(10))
        assert code == -signal.SIGKILL, f"ended with {code} by itself: {self._registry.output()}"
        self._registry = self._serve()

    def quiet(self) -> float:
        """Let the registry live, and a large job wait beside the stream of small ones; returns its wait."""
        large = Client(self.world, self._operator_port, number=99, seed=0, kind=LARGE)
        large.start()
        end = time.monotonic() + patience(MOST_WAIT_SECONDS)
        while not large.longest_wait_seconds and time.monotonic() < end:
            time.sleep(0.1)
        large.stop()
        if not 0 < large.longest_wait_seconds <= patience(MOST_WAIT_SECONDS):
            self.world.violate(f"a large job waited for {large.longest_wait_seconds:.1f} s, or got nothing")
        return large.longest_wait_seconds

    def stop(self) -> None:
        """End the clients."""
        for client in self._clients:
            client.stop()

    def _serve(self) -> Registry:
        program = Registry(
            "--store",
            f"sqlite://{self._folder / 'state' / 'registry.db'}",
            "--state-dir",
            str(self._folder / "state"),
            "--warmup-heartbeat-interval-seconds=0.4",
            "--heartbeat-timeout-seconds=300",
            "--claim-ttl-seconds=10",
            environment={
                "GPU_REGISTRY_HEALTHY_HEARTBEATS_NEEDED": "1",
                "GPU_REGISTRY_QUEUE_RESERVE_AFTER_SECONDS": str(RESERVE_AFTER_SECONDS),
                "GPU_REGISTRY_FLAP_LIMIT": "1000",
            },
            node_port=self._node_port,
            operator_port=self._operator_port,
        )
        self._running.enter_context(program)
        return program


def run(runs: int, seed: int) -> int:
    """Play; returns 1 when something must not have happened."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        campaign = Campaign(Path(folder), running, seed=seed)
        waits = []
        for number in range(1, runs + 1):
            campaign.kill()
            if number % QUIET_EVERY == 0 or number == runs:
                waits.append(campaign.quiet())
                world = campaign.world
                print(
                    f"{number} kills, {world.granted} claims, {world.gangs} of them on two nodes, "
                    f"{len(world.violations)} violations; large jobs waited "
                    f"{', '.join(f'{one:.1f}' for one in waits)} s",
                    flush=True,
                )
            if campaign.world.violations:
                break
        campaign.stop()
    for violation in campaign.world.violations[:20]:
        print(f"  {violation}")
    return int(bool(campaign.world.violations))


def main() -> int:
    """Read the options and play."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    return run(asked.runs, asked.seed)


if __name__ == "__main__":
    sys.exit(main())
