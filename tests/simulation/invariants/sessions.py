"""One live session per id, superseded ones are not heard, epochs grow, clones do not fight."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.registry.actions import NOTHING, Answer, CloseConnection, DocumentKind, Output, Refusal, Send
from gpu_agent.registry.events import (
    ConnectionLost,
    Event,
    FaultReported,
    HeartbeatReceived,
    JoinTokenRequested,
    RegistrationReceived,
    RemovalRequested,
    RotationRequested,
    UnregistrationReceived,
)
from gpu_agent.registry.tokens import CredentialKind
from gpu_agent.server.effects import Executable, PublishEvent
from gpu_agent.server.tokens import digest_of
from gpu_agent.session.types import State
from gpu_agent.store.base import Batch, Loaded
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, ObservedAgent, Observer, hold
from tests.simulation.invariants.statuses import GONE

_FROM_A_NODE = (HeartbeatReceived, RegistrationReceived, UnregistrationReceived, FaultReported)


class SessionInvariants(Observer):
    """Watches connections and epochs."""

    def __init__(self, cluster: Cluster) -> None:
        self.supersessions: Counter[str] = Counter()
        """Since they were last counted, by id."""
        self._cluster = cluster
        self._closing: set[int] = set()
        """Connections that the registry has decided to close."""
        self._epochs: dict[str, int] = {}
        self._before: object = None
        self._ignored = False

    def before(self, event: Event | None) -> None:
        self._ignored = isinstance(event, _FROM_A_NODE) and event.connection in self._closing
        if self._ignored:
            self._before = self._picture()

    def decided(self, event: Event | None, output: Output) -> None:
        if self._ignored:
            same = output is NOTHING and self._picture() == self._before
            hold(Invariant.SUPERSEDED_IS_IGNORED, same, f"{event} led to {output}")
            self._ignored = False
        for effect in output.effects:
            if isinstance(effect, CloseConnection):
                self._closing.add(effect.connection)
        if isinstance(event, ConnectionLost):
            self._closing.discard(event.connection)  # its gateway may report it once more
        if not isinstance(event, HeartbeatReceived):
            self._count_sessions()

    def executed(self, effect: Executable) -> None:
        if isinstance(effect, PublishEvent):
            if effect.event.event in GONE:
                self._epochs.pop(str(effect.event.node_id), None)
        elif isinstance(effect, Send):
            message = effect.message
            if isinstance(message, NodeRegisterAck):
                self._acknowledged(message)
            elif isinstance(message, NodeError) and message.code == ErrorCode.SESSION_SUPERSEDED:
                self.supersessions[str(message.node_id)] += 1

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        for output in outputs:
            for change in output.changes:
                if change.kind is DocumentKind.NODE and change.document is None:
                    self._epochs.pop(change.key, None)

    def crashed(self) -> None:
        self._closing.clear()
        self._ignored = False

    def _acknowledged(self, ack: NodeRegisterAck) -> None:
        before, epoch = self._epochs.get(ack.node_id, 0), ack.session_epoch or 0
        hold(Invariant.EPOCHS_GROW, epoch > before, f"{ack.node_id}: epoch {epoch} after {before}")
        self._epochs[ack.node_id] = epoch

    def _count_sessions(self) -> None:
        nodes = self._cluster.fleet._nodes
        connected = {
            record.connection: node_id
            for node_id, record in nodes.records.items()
            if record.connection is not None
        }
        bound = {connection: record.node_id for connection, record in nodes.by_connection.items()}
        if connected != bound or len(set(bound.values())) != len(bound):
            hold(Invariant.ONE_SESSION, holds=False, detail=f"connections {bound}, records {connected}")

    def _picture(self) -> object:
        return sorted(
            (
                record.node_id,
                record.status,
                record.epoch,
                record.connection,
                record.liveness.last_seen_at,
                record.liveness.last_heartbeat_at,
            )
            for record in self._cluster.records()
        )


# No token that was sent is lost, no revoked one lives on, no join token admits too many.


class Life(StrEnum):
    """Whether a node's token must open, may open, or must not."""

    OPENS = "opens"
    MAY_OPEN = "may open"
    ENDED = "ended"


@dataclass(slots=True)
class _Issued:
    """A node token that was drawn for an ack."""

    text: str
    node_id: str
    life: Life = Life.MAY_OPEN
    doubtful: bool = False
    """True once something was decided that may end it, perhaps before it was sent."""


class CredentialInvariants(Observer):
    """Keeps account of the tokens that nodes and operators received."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._issued: list[_Issued] = []
        self._ends: dict[int, list[_Issued]] = {}
        """By request: the tokens that end with it."""
        self._removed: dict[int, list[_Issued]] = {}
        """By save: the tokens that end with a record."""
        self._joined: dict[int, list[_Issued]] = {}
        """By connection: the tokens that end once its registration is acknowledged."""
        self._uses: dict[str, int] = {}
        self._came: dict[str, set[tuple[str, int]]] = {}
        """By join token: the nodes that came by it, with the epoch in which they came.

        A use counts once it is stored: one that a crash loses admits the node again, with the same id.
        """
        self._consumed: dict[int, tuple[str, str, int]] = {}
        """By save: by which join token which node came, and in which epoch."""
        self._overused = ""
        """A join token that admitted too many; raised later: within a save it looks like a failed one."""
        self._coming: dict[int, tuple[str, str, int]] = {}
        """By connection: by which join token which node came, and in which epoch."""
        self._arrived: set[int] = set()
        """Connections on which a node registered before: what they presented counts no more."""

    def opens(self, text: str | None) -> bool:
        """Say whether a node's token must still open the registry."""
        return any(one.text == text and one.life is Life.OPENS for one in self._issued)

    def decided(self, event: Event | None, output: Output) -> None:
        hold(Invariant.USES_COUNTED, not self._overused, self._overused)
        for change in output.changes:
            if change.kind is DocumentKind.NODE and change.document is None:
                self._removed.setdefault(output.number or 0, []).extend(self._doubt(change.key))
        match event:
            case HeartbeatReceived():
                self._beaten(event, output)
            case RegistrationReceived():
                self._registered(event, output)
            case RotationRequested(revoke_now=True) | RemovalRequested():
                self._ends[event.ref] = self._doubt(event.node_id)
            case JoinTokenRequested(token_id=token_id, uses=int() as uses):
                self._uses.setdefault(token_id, uses)
            case _:
                pass

    def executed(self, effect: Executable) -> None:
        if isinstance(effect, Answer):
            ended = self._ends.pop(effect.ref, [])
            if not isinstance(effect.result, Refusal):
                _end(ended)
        elif isinstance(effect, Send) and isinstance(effect.message, NodeRegisterAck):
            _end(self._joined.pop(effect.connection, []))
            for one in self._issued:
                if one.text == effect.message.node_token and not one.doubtful:
                    one.life = Life.OPENS

    def stored(self, outputs: Sequence[Output], batches: Sequence[Batch]) -> None:
        """A removed record takes its tokens with it; a use is consumed."""
        for output in outputs:
            _end(self._removed.pop(output.number or 0, []))
            if output.number in self._consumed:
                self._count_use(*self._consumed.pop(output.number))

    def crashed(self) -> None:
        self._ends.clear()
        self._removed.clear()
        self._consumed.clear()
        self._joined.clear()
        if self._cluster.gateways is None:  # else the connections live on, and with them what they presented
            self._coming.clear()

    def restored(self, loaded: Loaded) -> None:
        self.check_all()

    def check_all(self) -> None:
        fleet, now = self._cluster.fleet, self._cluster.world.now
        for one in self._issued:
            if one.life is Life.MAY_OPEN:
                continue
            credential = fleet.credential(digest_of(one.text), now)
            opens = credential is not None and credential.node_id == one.node_id
            if opens != (one.life is Life.OPENS):
                shown = one.text[:13]
                detail = f"{shown}… of {one.node_id} {one.life}, but stands for {credential}"
                hold(Invariant.CREDENTIAL_HOLDS, holds=False, detail=detail)

    def _registered(self, event: RegistrationReceived, output: Output) -> None:
        """A node that registers by a join token, or by the newer of two tokens, ends its earlier ones."""
        ack = next((one.message for one in output.effects if isinstance(one, Send) and _is_ack(one)), None)
        if not isinstance(ack, NodeRegisterAck) or event.credential is None:
            return
        credential = event.credential
        if event.connection in self._arrived:
            self._token_sent_again(event.connection, ack)
        else:
            self._arrived.add(event.connection)
            doubtful = self._doubt(ack.node_id, but=credential.token_id)
            if credential.kind is CredentialKind.JOIN and ack.node_token is not None:
                self._joined[event.connection] = doubtful
                self._coming[event.connection] = (credential.token_id, ack.node_id, ack.session_epoch or 0)
        if ack.node_token is not None:
            self._issued.append(_Issued(ack.node_token, ack.node_id))

    def _token_sent_again(self, connection: int, ack: NodeRegisterAck) -> None:
        """A connection receives another token.

        Before its first heartbeat a node may register by its join token again (§2). Later, a node that
        receives a third new token on one connection has stored the first or the second.
        """
        if ack.node_token is None:
            return
        if connection in self._coming:
            self._doubt(ack.node_id)
        sent = [one for one in self._issued if one.node_id == ack.node_id and one.life is not Life.ENDED]
        for one in sent[1:-1]:
            one.life, one.doubtful = Life.MAY_OPEN, True

    def _beaten(self, event: HeartbeatReceived, output: Output) -> None:
        came = self._coming.get(event.connection)
        if came is None or came[1] != event.message.node_id or output is NOTHING:
            return
        use = self._coming.pop(event.connection)
        if output.number is None:
            self._count_use(*use)
        else:
            self._consumed[output.number] = use

    def _count_use(self, token_id: str, node_id: str, epoch: int) -> None:
        nodes = self._came.setdefault(token_id, set())
        nodes.add((node_id, epoch))
        uses = self._uses.get(token_id)
        if uses is not None and len(nodes) > uses:
            self._overused = f"{token_id} has {uses} uses, let in {nodes}"

    def _doubt(self, node_id: str, *, but: str = "") -> list[_Issued]:
        """From now on a node's tokens may not open any more."""
        doubtful = [
            one
            for one in self._issued
            if one.node_id == node_id and one.life is not Life.ENDED and f"_{but}_" not in one.text
        ]
        for one in doubtful:
            one.life, one.doubtful = Life.MAY_OPEN, True
        return doubtful


def _end(tokens: list[_Issued]) -> None:
    for one in tokens:
        one.life = Life.ENDED


def _is_ack(send: Send) -> bool:
    return isinstance(send.message, NodeRegisterAck)


# An agent always waits for something that comes: an instant, an answer, a probe, or a person.


_TIMED = frozenset({State.BACKING_OFF, State.AWAITING_ACK, State.REGISTERED, State.LEAVING})


class AgentInvariants(Observer):
    """Watches agents."""

    def agent_moved(self, agent: ObservedAgent) -> None:
        machine = agent.machine
        if machine is None:
            return
        state = machine.state
        if state in _TIMED:
            waits = machine.deadline is not None
        elif state is State.CONNECTING:
            waits = agent.is_dialing
        elif state is State.WAITING_GPU:
            waits = not machine._registration.possible
        elif state is State.DRAINED:
            waits = agent.own_drain is not None
        else:
            waits = state is State.YIELDED
        if not waits:
            detail = f"{agent.name} is {state} and waits for nothing:\n{machine.transition_log()}"
            hold(Invariant.AGENT_MOVES, holds=False, detail=detail)
