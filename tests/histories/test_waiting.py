"""A job that asks for whole nodes, beside small ones that come and go on a real registry (§5.4)."""

import random
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.histories.campaign import FLEET, Stage
from tests.histories.clients import Caller
from tests.histories.record import History, JobKind, Outcome
from tests.histories.registries import OneProcess
from tests.waiting import patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SMALL, LARGE = JobKind(gpus=1, wait_seconds=3.0), JobKind(nodes=2, gpus=2, wait_seconds=20.0)
WORKERS = 8
WORK_SECONDS = (0.1, 2.0)
MOST_WAIT_SECONDS = 20.0
"""The job has its reservation after 1 s; a claim that is reserved against runs for 2 s."""


class Worker(threading.Thread):
    """Runs one small job after the other."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(name=caller.name, daemon=True)
        self._caller = caller
        self.stopped = threading.Event()
        self.done = 0

    def run(self) -> None:
        while not self.stopped.is_set():
            job = f"{self._caller.name}-{self.done}"
            claim = self._caller.claim(job, SMALL)
            if claim is not None and claim.outcome is Outcome.SHOWN:
                self.stopped.wait(self._caller.dice.uniform(*WORK_SECONDS))
                self._caller.release(job, claim.shown[0].claim)
                self.done += 1


def test_a_large_job_is_not_starved_by_small_ones(tmp_path: Path) -> None:
    with ExitStack() as running:
        registry = OneProcess(tmp_path, running)
        Stage(registry, running, seed=0).free_fleet()
        callers = [
            Caller(
                f"caller-{place}", History({}, FLEET), registry.api, random.Random(place), timeout_seconds=60
            )
            for place in range(WORKERS + 1)
        ]
        workers = [Worker(caller) for caller in callers[1:]]
        for worker in workers:
            worker.start()
        asked, claim = time.monotonic(), callers[0].claim("large", LARGE)
        while claim is not None and claim.outcome is Outcome.NONE:
            assert time.monotonic() - asked < patience(MOST_WAIT_SECONDS)
            claim = callers[0].claim("large", LARGE)  # it keeps its place
        assert claim is not None
        assert claim.outcome is Outcome.SHOWN
        for worker in workers:
            worker.stopped.set()
        for worker in workers:
            worker.join()
        for caller in callers:
            caller.api.close()
    assert sum(worker.done for worker in workers) > WORKERS
