"""What a actor of a scenario is, and what others come to know of it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol, assert_never

from gpu_agent.node.report import measure
from gpu_agent.probe.health.reasons import reason
from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.session.machine import SessionMachine
from gpu_agent.session.types import (
    Action,
    ArchiveIdentity,
    Connect,
    Connected,
    ConnectFailed,
    Credential,
    Declared,
    Disconnect,
    Disconnected,
    Event,
    Exit,
    LogEvent,
    MessageReceived,
    Probe,
    RunChecks,
    Send,
    SendHeartbeat,
    SessionSettings,
    Started,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.codec import decode_from_registry, encode
from gpu_agent.wire.declaration import Owner, declare, heartbeat
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, MemoryKind, Model, ModelStatus, Outcome
from gpu_agent.wire.messages import NodeCheck
from tests.scenarios.transcript import EPOCH

JOIN_TOKEN = "welcome"
"""Every machine of the harness has this join token, unless it is said to have another."""

SAID_BY_THE_MESSAGE = {"node_registered", "node_status_changed", "node_register_refused", "registry_error"}
"""Notes that say once more what a message before them said."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a connection, with a token if there is one."""

    token: str | None


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Send this."""

    text: str


@dataclass(frozen=True, slots=True)
class Logged:
    """Something that happened inside, for the transcript."""

    text: str


Outward = Dial | HangUp | Frame | Logged
"""What the others come to know of a actor."""


class Actor(Protocol):
    """What the harness needs of one."""

    @property
    def name(self) -> str: ...
    @property
    def deadline(self) -> float: ...
    def wake(self, now: float) -> list[Outward]: ...
    def opened(self, now: float) -> list[Outward]: ...
    def refused(self, detail: str, now: float, *, http_status: int | None = None) -> list[Outward]: ...
    def hear(self, frame: str, now: float) -> list[Outward]: ...
    def closed(self, code: int, detail: str, now: float) -> list[Outward]: ...


def listed(fields: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


# A machine on the stage: GPUs that can be lost, a driver that can hang, models that can break.
#
# What its agent makes of it goes through the agent's own health keeper; only the driver is played.


PROBE_SECONDS = 5.0
"""The agent's own default between two probes."""

_GPU_MB = 81_559
_HOST = Host(
    cpu_logical_cores=32,
    cpu_physical_cores=16,
    memory_total_mb=262_144,
    memory_used_mb=26_214,
    memory_available_mb=235_930,
    platform="linux",
    cpu_percent=5.0,
)


def _outside_fabric(gpu: Gpu) -> Gpu:
    return replace(gpu, fabric_faults=("fabric_incomplete",), reasons=(reason("fabric_incomplete"),))


class ScenarioHost:
    """The hardware under one agent."""

    def __init__(self, name: str, *, gpus: int, models: Mapping[str, ModelStatus]) -> None:
        self.lost: set[int] = set()
        self.outside_fabric: set[int] = set()
        self.models = dict(models)
        self.hung_since: float | None = None
        self.checks: tuple[NodeCheck, ...] | None = None
        """What the machine's checks would find; None for an agent that runs none."""
        self._gpus = [self._gpu(name, place) for place in range(gpus)]
        self._name = name
        self._tracker = HealthTracker()

    def probe_age_seconds(self, now: float) -> float | None:
        """Age of the last good reading."""
        return self._tracker.age_seconds(now)

    def add_gpu(self) -> None:
        """Put one more GPU in."""
        self._gpus.append(self._gpu(self._name, len(self._gpus)))

    def probe(self, now: float) -> Inventory:
        """Read everything, as the agent's probe would."""
        report = self._tracker.observe(self._reading(), now_wall=EPOCH + now, now_mono=now)
        models = tuple(
            Model(model_id=model_id, version="1", status=status) for model_id, status in self.models.items()
        )
        return Inventory(host=_HOST, gpu=report, models=models)

    def _reading(self) -> GpuReport | MissedReading:
        if self.hung_since is not None:
            return MissedReading(
                reason="nvml_hung", since=self.hung_since, detail="the NVIDIA driver does not answer"
            )
        if not self._gpus:
            return GpuReport(outcome=Outcome.NO_DRIVER, detail="there is no NVIDIA driver: install one")
        listed = tuple(
            _outside_fabric(gpu) if place in self.outside_fabric else gpu
            for place, gpu in enumerate(self._gpus)
            if place not in self.lost
        )
        return GpuReport(outcome=Outcome.OK, gpus=listed, driver_version="570.86.15", cuda_version="12.8")

    @staticmethod
    def _gpu(name: str, place: int) -> Gpu:
        return Gpu(
            uuid=f"GPU-{name}-{place}",
            name="NVIDIA H100 80GB HBM3",
            index=place,
            memory_mb=_GPU_MB,
            memory_used_mb=1_024,
            memory_free_mb=_GPU_MB - 1_024,
            memory_kind=MemoryKind.DEDICATED,
            fabric_faults=(),
            utilization_percent=5.0,
            processes=(),
        )


# Those who stand on the node's side of the wire: an agent, an older node, a stranger.
#
# Each is pure: it takes events and the time, and returns what it does to its connection.


class Agent:
    """The session of this project over a played machine, as `gpu_agent.node.agent` would join them."""

    def __init__(self, name: str, host: ScenarioHost, *, node_id: str | None) -> None:
        self.name = name
        self.host = host
        self.node_id = node_id
        self.token: str | None = None
        self.join_token = JOIN_TOKEN
        self.running_jobs: tuple[str, ...] | None = None
        """Ids, once a worker has announced one."""
        self._machine: SessionMachine | None = None
        self._inventory: Inventory | None = None
        self._checked: tuple[NodeCheck, ...] | None = None
        """The results of the checks that were run."""
        self._probe_at = inf

    @property
    def deadline(self) -> float:
        due = None if self._machine is None else self._machine.deadline
        return min(self._probe_at, inf if due is None else due)

    def start(self, now: float) -> list[Outward]:
        """Begin a process that remembers what the one before it has stored."""
        self._machine = SessionMachine(
            SessionSettings(),
            addresses=("registry",),
            node_id=self.node_id,
            has_token=self.token is not None,
            draw=lambda: 0.5,
        )
        self._checked = None if self.host.checks is None else ()
        return [*self.probe(now), *self._handle(Started(), now)]

    def stop(self, *, drain: bool, now: float) -> list[Outward]:
        return self._handle(StopRequested("its operator stops it", drain=drain), now)

    def probe(self, now: float) -> list[Outward]:
        """Probe the machine now, and report to the session."""
        self._inventory = self.host.probe(now)
        self._probe_at = now + PROBE_SECONDS
        declaration = declare(self._inventory, Owner(), checks=self._checked)
        return self._handle(Declared(declaration, self.running_jobs), now)

    def run_checks(self, now: float) -> list[Outward]:
        """Run the machine's checks, and report their results."""
        self._checked = self.host.checks
        return self.probe(now)

    def wake(self, now: float) -> list[Outward]:
        outward = self.probe(now) if now >= self._probe_at else []
        if self._machine is not None:
            outward += self._carry_out(self._machine.wake(now), now)
        return outward

    def opened(self, now: float) -> list[Outward]:
        return self._handle(Connected(), now)

    def refused(self, detail: str, now: float, *, http_status: int | None = None) -> list[Outward]:
        return self._handle(ConnectFailed(detail, http_status=http_status), now)

    def hear(self, frame: str, now: float) -> list[Outward]:
        return self._handle(MessageReceived(decode_from_registry(frame)), now)

    def closed(self, code: int, detail: str, now: float) -> list[Outward]:
        return self._handle(Disconnected(code, detail), now)

    def _handle(self, event: Event, now: float) -> list[Outward]:
        return [] if self._machine is None else self._carry_out(self._machine.handle(event, now), now)

    def _carry_out(self, actions: Iterable[Action], now: float) -> list[Outward]:
        return [outward for action in actions for outward in self._carry_out_one(action, now)]

    def _carry_out_one(self, action: Action, now: float) -> list[Outward]:
        match action:
            case Connect(credential):
                best = self.token if credential is Credential.BEST else None
                return [Dial(best or self.join_token)]
            case Disconnect():
                return [HangUp()]
            case Send(message):
                return [Frame(encode(message))]
            case SendHeartbeat():
                return [Frame(self._heartbeat(action, now))]
            case Probe():
                return self.probe(now)
            case RunChecks():
                return self.run_checks(now)
            case StoreIdentity() | ArchiveIdentity() | LogEvent() | Exit():
                return [Logged(text) for text in self._at_home(action)]
            case _ as unreachable:
                assert_never(unreachable)

    def _at_home(self, action: StoreIdentity | ArchiveIdentity | LogEvent | Exit) -> list[str]:
        match action:
            case StoreIdentity(node_id, node_token):
                new = node_id != self.node_id
                self.node_id, self.token = node_id, node_token or self.token
                return [f"stores its id {node_id}"] if new else []
            case ArchiveIdentity(node_id):
                self.node_id = None
                return [f"sets its id {node_id} aside"]
            case LogEvent(event, fields):
                return [] if event in SAID_BY_THE_MESSAGE else [f"{event} {listed(fields)}"]
            case Exit(reason, failed):
                self._machine, self._probe_at = None, inf
                return [f"{'fails' if failed else 'ends'}: {reason}"]
            case _ as unreachable:
                assert_never(unreachable)

    def _heartbeat(self, action: SendHeartbeat, now: float) -> str:
        assert self._inventory is not None
        moment = measure(
            self._inventory,
            job_ids=self.running_jobs,
            timestamp_ms=round((EPOCH + now) * 1000),
            probe_age_seconds=self.host.probe_age_seconds(now),
        )
        return encode(
            heartbeat(
                action.node_id,
                self._inventory,
                moment=moment,
                changed=action.changed,
                sequence=action.sequence,
                job_count_required=not action.knows_schemas,
            )
        )


class OlderNode:
    """A node of other make, as §9 saw it: late heartbeats, a remembered id, a fixed delay.

    It keeps no token; one may stand in the URL that it was given.
    """

    def __init__(self, name: str, *, models: tuple[str, ...], token: str | None) -> None:
        self.name = name
        self.node_id: str | None = None
        self._models = [{"model_id": model, "version": "1.0.0", "enabled": True} for model in models]
        self._token = token
        self._dial_at = 0.0
        self._heartbeat_at = inf

    @property
    def deadline(self) -> float:
        return min(self._dial_at, self._heartbeat_at)

    def wake(self, now: float) -> list[Outward]:
        if now >= self._dial_at:
            self._dial_at = inf
            return [Dial(self._token)]
        if now < self._heartbeat_at:
            return []
        self._heartbeat_at = now + 15.0
        usage = {"cpu_percent": 12.5, "gpu_percent": None, "mem_percent": 50.1, "running_jobs": 0}
        return [
            self._frame(
                "node_heartbeat",
                timestamp=round((EPOCH + now) * 1000),
                resource_usage=usage,
                installed_models=self._models,
            )
        ]

    def opened(self, now: float) -> list[Outward]:
        self._heartbeat_at = now + 15.0
        return [
            self._frame(
                "node_register",
                version="2.0.0",
                platform="windows",
                hardware={
                    "cpu_cores": 16,
                    "memory_gb": 32,
                    "gpus": [{"name": "NVIDIA GeForce RTX 4060", "memory_gb": 8}],
                },
                installed_models=self._models,
                features_supported={"emotion_detection": None},
                accept_public_jobs=True,
            )
        ]

    def refused(self, detail: str, now: float, *, http_status: int | None = None) -> list[Outward]:  # noqa: ARG002
        return self.closed(1006, detail, now)

    def hear(self, frame: str, now: float) -> list[Outward]:  # noqa: ARG002 - it acts on no message but this
        said = json.loads(frame)
        if said["type"] == "node_register_ack":
            self.node_id = said["node_id"]
        return []

    def closed(self, code: int, detail: str, now: float) -> list[Outward]:  # noqa: ARG002 - whatever the cause
        self._heartbeat_at, self._dial_at = inf, now + 5.0
        return []

    def _frame(self, kind: str, **parts: object) -> Frame:
        return Frame(json.dumps({"type": kind, "node_id": self.node_id} | parts))


class Stranger:
    """Somebody who opens a connection, says one thing, and listens."""

    name = "stranger"
    deadline = inf

    def __init__(self, frame: str, *, token: str) -> None:
        self._frame, self._token = frame, token

    def dial(self) -> list[Outward]:
        return [Dial(self._token)]

    def wake(self, now: float) -> list[Outward]:  # noqa: ARG002
        return []

    def opened(self, now: float) -> list[Outward]:  # noqa: ARG002
        return [Frame(self._frame)]

    def refused(self, detail: str, now: float, *, http_status: int | None = None) -> list[Outward]:  # noqa: ARG002
        return []

    def hear(self, frame: str, now: float) -> list[Outward]:  # noqa: ARG002
        return []

    def closed(self, code: int, detail: str, now: float) -> list[Outward]:  # noqa: ARG002
        return []
