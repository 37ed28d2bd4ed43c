"""The registry's own fleet, loop, writer and store, without sockets."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.registry.actions import Answer, Output, Result, Send, SendStatus
from gpu_agent.registry.events import ClaimRequested, Event
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.server.effects import (
    Executable,
    Prepared,
    PublishEvent,
    UpdateHistories,
    prepare,
    status_message,
)
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.views import Clock
from gpu_agent.server.writer import Writer
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.codec import encode


@dataclass
class Executor:
    """Does what the server's executor does, except for writing to sockets."""

    event_log: RegistryEventLog = field(default_factory=RegistryEventLog)
    clock: Clock = field(default_factory=Clock)
    acks: int = 0
    answers: dict[int, asyncio.Future[Result]] = field(default_factory=dict)

    def prepare(self, output: Output) -> Prepared:
        """Sort an output."""
        return prepare(output, event_log=self.event_log, clock=self.clock)

    def execute(self, effect: Executable) -> None:
        """Carry out one effect."""
        match effect:
            case Send(message=message):
                encode(message)
                self.acks += 1
            case SendStatus():
                encode(status_message(effect, self.clock))
            case Answer(ref, result):
                self.answers.pop(ref).set_result(result)
            case PublishEvent(event):
                self.event_log.publish(event)
            case UpdateHistories(changes):
                self.event_log.update_histories(changes)
            case _:
                pass


class Registry:
    """A fleet with a database."""

    def __init__(self, path: Path) -> None:
        self.executor = Executor()
        self.writer = Writer(SqliteStore(path))
        self.loop = FleetLoop(
            Fleet(Thresholds(), random.random, auth_off=True),
            self.executor,
            self.writer,
            monotonic=time.monotonic,
            scan_interval_seconds=1.0,
            lagged=lambda _: None,
        )
        self.loop.start()
        self._ref = 0

    def do(self, event: Event) -> None:
        """Let something happen."""
        self.loop.handle(event)

    async def claim(self) -> float:
        """Claim a place for a new job; returns the seconds until the answer."""
        self._ref += 1
        ref, began = self._ref, time.perf_counter()
        answer = self.executor.answers[ref] = asyncio.get_running_loop().create_future()
        self.do(ClaimRequested(ref, Job(job_id=f"job-{ref}"), f"claim-{ref}"))
        if not isinstance(await answer, Claim):
            raise SystemExit(f"no place was left for job {ref}")
        return time.perf_counter() - began
