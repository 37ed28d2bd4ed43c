"""One live session per id, superseded ones are not heard, epochs grow, clones do not fight."""

from collections import Counter
from collections.abc import Sequence

from gpu_agent.registry.actions import Action, CloseConnection, Kept, Save, Send
from gpu_agent.registry.events import (
    BeatArrived,
    Event,
    FaultReported,
    GoodbyeArrived,
    RegistrationArrived,
    SaveFailed,
)
from gpu_agent.server.clerk import Doing, Publish
from gpu_agent.store.base import Batch
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watches.arrows import GONE
from tests.simulation.watching import Watch

_FROM_A_NODE = (BeatArrived, RegistrationArrived, GoodbyeArrived, FaultReported)


class SessionsWatch(Watch):
    """Watches connections and epochs."""

    def __init__(self, scene: Scene) -> None:
        self.supersessions: Counter[str] = Counter()
        """Since they were last counted, by id."""
        self._scene = scene
        self._told_to_go: dict[int, int | None] = {}
        """Connections that the registry has decided to close, and in which save."""
        self._epochs: dict[str, int] = {}
        self._before: object = None
        self._deaf = False

    def before(self, event: Event | None) -> None:
        self._deaf = isinstance(event, _FROM_A_NODE) and event.connection in self._told_to_go
        if self._deaf:
            self._before = self._picture()

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if self._deaf:
            same = not actions and self._picture() == self._before
            hold(Invariant.SUPERSEDED_IS_DEAF, same, f"{event} brought about {actions}")
            self._deaf = False
        if isinstance(event, SaveFailed):
            self._told_to_go = {one: save for one, save in self._told_to_go.items() if save != event.save}
        for action in actions:
            if isinstance(action, CloseConnection):
                save = actions[0].save if isinstance(actions[0], Save) else None
                self._told_to_go[action.connection] = save
        if not isinstance(event, BeatArrived):
            self._count_sessions()

    def carried(self, doing: Doing) -> None:
        if isinstance(doing, Publish):
            if doing.event.event in GONE:
                self._epochs.pop(str(doing.event.node_id), None)
        elif isinstance(doing, Send):
            message = doing.message
            if isinstance(message, NodeRegisterAck):
                self._acknowledged(message)
            elif isinstance(message, NodeError) and message.code == ErrorCode.SESSION_SUPERSEDED:
                self.supersessions[str(message.node_id)] += 1

    def kept(self, saves: Sequence[Save], batches: Sequence[Batch]) -> None:
        for save in saves:
            for change in save.changes:
                if change.kind is Kept.NODE and change.document is None:
                    self._epochs.pop(change.key, None)

    def crashed(self) -> None:
        self._told_to_go.clear()
        self._deaf = False

    def _acknowledged(self, ack: NodeRegisterAck) -> None:
        before, epoch = self._epochs.get(ack.node_id, 0), ack.session_epoch or 0
        hold(Invariant.EPOCHS_GROW, epoch > before, f"{ack.node_id}: epoch {epoch} after {before}")
        self._epochs[ack.node_id] = epoch

    def _count_sessions(self) -> None:
        roster = self._scene.fleet._roster
        connected = {
            record.connection: node_id
            for node_id, record in roster.records.items()
            if record.connection is not None
        }
        bound = {connection: record.node_id for connection, record in roster.bound.items()}
        if connected != bound or len(set(bound.values())) != len(bound):
            hold(Invariant.ONE_SESSION, holds=False, detail=f"connections {bound}, records {connected}")

    def _picture(self) -> object:
        return sorted(
            (
                record.node_id,
                record.status,
                record.epoch,
                record.connection,
                record.heard_at,
                record.last_beat,
            )
            for record in self._scene.records()
        )
