"""A registry under test: a fleet with a clock and a store, and what it sends to each connection."""
# ruff: noqa: ANN401 - parts of messages are passed through as they are

from collections.abc import Sequence
from typing import Any, TypeVar

from gpu_agent.registry.actions import (
    Answer,
    CloseConnection,
    DocumentKind,
    Effect,
    LogEvent,
    Output,
    Send,
    SendStatus,
)
from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    DrainRequested,
    Event,
    HeartbeatReceived,
    HeartbeatRepeated,
    JoinTokenRequested,
    RegistrationReceived,
    ReleaseRequested,
    RenewalRequested,
    Requester,
    UnregistrationReceived,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Job
from gpu_agent.registry.node import Declared, NodeRecord
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import Credential, CredentialKind, FreshToken
from gpu_agent.server.gateway.heartbeat_relay import HeartbeatRelay, News, amounts_of
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import (
    GpuDeclaration,
    GpuFigures,
    Hardware,
    InstalledModel,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeRegisterAck,
    NodeUnregister,
    ResourceUsage,
)
from tests.fleet_shell import FleetShell
from tests.gateways import GATEWAYS

_Kind = TypeVar("_Kind")

WARMUP_SECONDS = 2.0


def gpus(count: int, *, memory_gb: int | None = 80) -> tuple[GpuDeclaration, ...]:
    return tuple(
        GpuDeclaration(name="NVIDIA H100", memory_gb=memory_gb, uuid=f"GPU-{place}") for place in range(count)
    )


def hardware(count: int = 1, *, memory_gb: int | None = 80) -> Hardware:
    return Hardware(cpu_cores=32, memory_gb=256, gpus=gpus(count, memory_gb=memory_gb))


def node_record(message: NodeRegister | None = None, node_id: str = "node-1", **facts: Any) -> NodeRecord:
    """A record as a registration makes it, before anything is derived from the declaration."""
    facts.setdefault("registered_at", 0.0)
    declared = Declared(registration=message or declaration())
    return NodeRecord(node_id=node_id, declared=declared, **facts)


def declaration(node_id: str | None = None, **parts: Any) -> NodeRegister:
    defaults: dict[str, Any] = {
        "version": "1.0.0",
        "capability_schema_version": "1.1",
        "hardware": hardware(),
    }
    return NodeRegister(node_id=node_id, **(defaults | parts))


def figures(count: int = 1, **parts: Any) -> tuple[GpuFigures, ...]:
    defaults: dict[str, Any] = {"utilization_percent": 5.0, "memory_used_mb": 1000}
    return tuple(GpuFigures(uuid=f"GPU-{place}", **(defaults | parts)) for place in range(count))


JOIN = Credential(CredentialKind.JOIN, "join")
"""What a registry's first join token stands for; any number of nodes may join by it."""


def fresh_token(node_id: str) -> FreshToken:
    """The token that `Registry.register` draws for a node."""
    return FreshToken(f"key-{node_id}", f"secret of {node_id}", f"digest of {node_id}")


def proof(node_id: str) -> Credential:
    """What that token stands for."""
    return Credential(CredentialKind.NODE, f"key-{node_id}", node_id)


def heartbeat(node_id: str = "node-1", **parts: Any) -> Heartbeat:
    defaults: dict[str, Any] = {
        "timestamp": 0,
        "resource_usage": ResourceUsage(cpu_percent=5.0, mem_percent=10.0, gpu_percent=5.0),
        "gpus": figures(),
        "probe_age_seconds": 1.0,
        "running_jobs": (),
    }
    return Heartbeat.of(NodeHeartbeat(node_id=node_id, **(defaults | parts)))


def unregistration(connection: int = 1, **parts: Any) -> UnregistrationReceived:
    """Return the event that a node unregisters."""
    return UnregistrationReceived(connection, NodeUnregister.model_validate({"node_id": "node-1", **parts}))


def model(model_id: str, **parts: Any) -> InstalledModel:
    return InstalledModel(model_id=model_id, version="1", **parts)


class Relay:
    """What a gateway makes of events: a heartbeat that says nothing new is only counted."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._relay = HeartbeatRelay(fleet.thresholds)
        self._exact: dict[int, bool] = {}
        self._registered: set[int] = set()

    def passes(self, event: Event, now: float) -> Event:
        """What reaches the fleet."""
        if isinstance(event, ConnectionLost):
            self._relay.forget(event.connection)
            self._registered.discard(event.connection)
        if isinstance(event, RegistrationReceived):
            self._relay.declared(event.connection, event.message.hardware)
        if not isinstance(event, HeartbeatReceived) or event.round_trip_seconds is not None:
            return event
        heartbeat = event.message
        news = self._relay.news_of(event.connection, heartbeat, now)
        if news is News.WHOLE or event.connection not in self._registered:
            return event
        amounts = amounts_of(heartbeat) if news is News.AMOUNTS else None
        return HeartbeatRepeated(event.connection, 0.0, heartbeat.probe_age_seconds, amounts)

    def follow(self, event: Event, done: Sequence[Effect]) -> None:
        """Do what follows for the gateway."""
        for one in of(Send, done):
            if isinstance(one.message, NodeRegisterAck):
                self._relay.registered(one.connection, one.message.node_id)
                self._registered.add(one.connection)
            elif isinstance(one.message, NodeError):
                self._relay.refused(one.connection)
        if isinstance(event, HeartbeatReceived):
            exact = self._fleet.wants_exact_figures(event.connection)
            if exact is not self._exact.get(event.connection, False):
                self._exact[event.connection] = exact
                self._relay.set_exact(event.connection, exact=exact)


class Registry:
    """A fleet with a clock, and a store that can fail."""

    def __init__(
        self,
        *,
        allow_simulated: bool = False,
        auth_off: bool = False,
        debug: bool = False,
        gateways: bool = GATEWAYS > 0,
        **thresholds: Any,
    ) -> None:
        self.thresholds = Thresholds(**thresholds)
        self.fleet = Fleet(
            self.thresholds,
            lambda: 0.5,
            allow_simulated=allow_simulated,
            auth_off=auth_off,
            debug=lambda: debug,
        )
        self.auth_off = auth_off
        self.now = 1000.0
        self.done: list[Effect] = []
        """Everything that was carried out."""
        self._shell = FleetShell(self.fleet, now=lambda: self.now, execute=self.done.append)
        self.documents = self._shell.documents
        self.stored = self._shell.stored
        self._relay = Relay(self.fleet) if gateways else None
        self._refs = iter(range(1, 1_000_000))
        if not auth_off:
            self.do(JoinTokenRequested(ref=0, token_id=JOIN.token_id, digest="digest of join", uses=None))
            self.documents.clear()
            self.stored.clear()
            self.done.clear()

    def ref(self) -> int:
        return next(self._refs)

    def do(self, event: Event) -> list[Effect]:
        """Let something happen; returns what was carried out because of it."""
        if self._relay is None:
            return self.carry_out(self.fleet.handle(event, self.now))
        done = self.carry_out(self.fleet.handle(self._relay.passes(event, self.now), self.now))
        self._relay.follow(event, done)
        return done

    def restore(self, stored: list[StoredDocument], *, takeover: bool = False) -> list[Effect]:
        return self.carry_out(*self.fleet.restore(stored, self.now, takeover=takeover))

    def stored_documents(self, *, away: float = 0.0) -> list[StoredDocument]:
        """What the store holds."""
        return self._shell.load(away=away)

    def wake(self) -> list[Effect]:
        return self.carry_out(self.fleet.wake(self.now))

    def pass_time(self, seconds: float) -> list[Effect]:
        """Let time pass, waking the fleet at each of its deadlines on the way."""
        end, done = self.now + seconds, list[Effect]()
        while (deadline := self.fleet.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            done += self.wake()
        self.now = end
        return done

    def register(self, connection: int = 1, node_id: str | None = None, **parts: Any) -> list[Effect]:
        return self.arrive(JOIN, connection, node_id, **parts)

    def arrive(
        self, credential: Credential | None, connection: int = 1, node_id: str | None = None, **parts: Any
    ) -> list[Effect]:
        """Let a node register with what its connection presented."""
        fresh_id = f"node-{connection}"
        return self.do(
            RegistrationReceived(
                connection,
                declaration(node_id, **parts),
                fresh_id,
                None if self.auth_off else credential,
                address=f"10.0.0.{connection}",
                fresh_token=None if self.auth_off else fresh_token(node_id or fresh_id),
            )
        )

    def heartbeat(self, connection: int = 1, node_id: str | None = None, **parts: Any) -> list[Effect]:
        return self.do(HeartbeatReceived(connection, heartbeat(node_id or f"node-{connection}", **parts)))

    def heartbeats(
        self, count: int, connection: int = 1, *, every: float = WARMUP_SECONDS, **parts: Any
    ) -> list[Effect]:
        done = []
        for _ in range(count):
            done += self.pass_time(every) + self.heartbeat(connection, **parts)
        return done

    def come_back(self, connection: int, **parts: Any) -> list[Effect]:
        """Let node-1 register on another connection, by its own token."""
        message = declaration(**parts)
        return self.do(RegistrationReceived(connection, message, "unused", credential=proof("node-1")))

    def ready(self, connection: int = 1, **parts: Any) -> NodeRecord:
        """Bring a node of its own up to ready."""
        self.register(connection, **parts)
        self.heartbeats(3, connection)
        record = self.node(f"node-{connection}")
        assert record.status == "ready"
        return record

    def drain(self, node_id: str = "node-1", deadline_seconds: float | None = None) -> list[Effect]:
        return self.do(DrainRequested(self.ref(), node_id, deadline_seconds, "maintenance"))

    def claim(self, job_id: str, *, by: str | None = None, **demands: Any) -> Any:
        """Request a claim; returns the answer."""
        event = self.claim_request(job_id, by=by, **demands)
        return answer([one for one in self.do(event) if not isinstance(one, Answer) or one.ref == event.ref])

    def claim_request(self, job_id: str, *, by: str | None = None, **demands: Any) -> ClaimRequested:
        ref = self.ref()
        return ClaimRequested(ref, Job(job_id=job_id, **demands), f"claim-{ref}", Requester(by))

    def renew(self, job_id: str, claim_id: str | None = None, *, by: str | None = None, **parts: Any) -> Any:
        return answer(
            self.do(RenewalRequested(self.ref(), job_id, claim_id, requester=Requester(by), **parts))
        )

    def release(
        self, job_id: str, claim_id: str | None = None, *, by: str | None = None, is_admin: bool = False
    ) -> Any:
        return answer(self.do(ReleaseRequested(self.ref(), job_id, claim_id, Requester(by, is_admin))))

    def node(self, node_id: str = "node-1") -> NodeRecord:
        record = self.fleet.node(node_id)
        assert record is not None
        return record

    @property
    def failing(self) -> bool:
        return self._shell.failing

    def carry_out(self, *outputs: Output) -> list[Effect]:
        """Do what the server's loop does; returns what was carried out."""
        count = len(self.done)
        for output in outputs:
            self._shell.carry_out(output)
        return self.done[count:]

    def let_store_fail(self, *, fails: bool = True) -> None:
        """Let the store fail, or answer again, from now on."""
        self._shell.let_store_fail(fails=fails)

    def recover(self, *, outage_seconds: float = 1.0) -> list[Effect]:
        """Let the store answer again, and store all that waits."""
        count = len(self.done)
        self._shell.let_store_fail(fails=False, outage_seconds=outage_seconds)
        return self.done[count:]

    @property
    def document_names(self) -> list[str]:
        """The nodes and claims that the store holds."""
        return sorted(name for kind, name in self.documents if kind is not DocumentKind.TOKEN)


def of(kind: type[_Kind], actions: Sequence[Effect]) -> list[_Kind]:
    """Only the actions of one kind, in order."""
    return [action for action in actions if isinstance(action, kind)]


def statuses(actions: Sequence[Effect], connection: int = 1) -> list[str]:
    """The statuses that a connection received, in order."""
    return [one.status.value for one in of(SendStatus, actions) if one.connection == connection]


def codes(actions: Sequence[Effect], connection: int = 1) -> list[str]:
    """The refusal codes that a connection received."""
    return [
        message.code
        for one in of(Send, actions)
        if one.connection == connection and (message := one.message).type == "node_error"
    ]


def closed(actions: Sequence[Effect]) -> list[tuple[int, int]]:
    return [(one.connection, one.code) for one in of(CloseConnection, actions)]


def logged(actions: Sequence[Effect], event: str) -> list[LogEvent]:
    return [one for one in of(LogEvent, actions) if one.event == event]


def answer(actions: Sequence[Effect]) -> Any:
    (one,) = of(Answer, actions)
    return one.result


def ack(actions: list[Effect]) -> NodeRegisterAck:
    (message,) = [one.message for one in of(Send, actions) if isinstance(one.message, NodeRegisterAck)]
    return message
