"""No acknowledged drain, resume, cordon, uncordon or removal is lost, whatever crashes."""

from collections.abc import Iterator, Sequence

from gpu_agent.registry.actions import Action, Answer, Note, Refusal, Send
from gpu_agent.registry.events import (
    BeatArrived,
    CordonAsked,
    DrainAsked,
    Event,
    RegistrationArrived,
    RemovalAsked,
    ResumeAsked,
)
from gpu_agent.server.clerk import Doing
from gpu_agent.store.base import Loaded
from gpu_agent.wire.messages import NodeRegisterAck
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watching import Watch
from tests.simulation.wished import Wished

Wish = tuple[bool, str | None]
"""Whether an operator wants it drained, and why it is cordoned."""

_NONE: Wish = (False, None)


class WishesWatch(Watch):
    """Keeps account of what operators were promised."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.drains: dict[str, Wished[bool]] = {}
        self.cordons: dict[str, Wished[str | None]] = {}
        self._removed: set[str] = set()
        """Nodes whose removal was acknowledged, until they register again."""
        self._removals: dict[int, str] = {}

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        match event:
            case BeatArrived():
                return
            case DrainAsked(ref=ref, node_id=node_id):
                self._drain(node_id).asked(ref, True)  # noqa: FBT003 - the value itself
            case ResumeAsked(ref=ref, node_id=node_id):
                self._drain(node_id).asked(ref, False)  # noqa: FBT003 - the value itself
            case CordonAsked(ref=ref, node_id=node_id, reason=reason):
                self._cordon(node_id).asked(ref, reason)
            case RemovalAsked(ref=ref, node_id=node_id):
                self._drain(node_id).asked(ref, False)  # noqa: FBT003 - the value itself
                self._cordon(node_id).asked(ref, None)
                self._removals[ref] = node_id
            case RegistrationArrived():
                self._registered(actions)
            case _:
                pass
        self._look(actions)

    def carried(self, doing: Doing) -> None:
        if not isinstance(doing, Answer):
            return
        refused = isinstance(doing.result, Refusal)
        for wished in self._all():
            if refused:
                wished.refused(doing.ref)
            else:
                wished.acknowledged(doing.ref)
        node_id = self._removals.pop(doing.ref, None)
        if node_id is not None and not refused:
            self._removed.add(node_id)

    def crashed(self) -> None:
        self._removals.clear()
        for wished in self._all():
            wished.lost()

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        self.glance()
        for node_id in self.drains:
            self.drains[node_id].found(self._is(node_id)[0])
        for node_id in self.cordons:
            self.cordons[node_id].found(self._is(node_id)[1])

    def glance(self) -> None:
        for node_id in {**self.drains, **self.cordons}:
            self._check(node_id)
        for node_id in self._removed:
            gone = self._scene.fleet.node(node_id) is None
            hold(Invariant.WISH_KEPT, gone, f"{node_id} was removed, and is back without registering")

    def must_stay_empty(self, node_id: str) -> bool:
        """Say whether no new job may go there, by what operators were promised."""
        drain, cordon = self.drains.get(node_id), self.cordons.get(node_id)
        drained = drain is not None and drain.is_settled and drain.settled
        cordoned = cordon is not None and cordon.is_settled and cordon.settled is not None
        return drained or cordoned

    def _registered(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, NodeRegisterAck):
                node_id = action.message.node_id
                self._removed.discard(node_id)
                self._removals = {ref: one for ref, one in self._removals.items() if one != node_id}

    def _look(self, actions: Sequence[Action]) -> None:
        """Look at the nodes that something was decided about."""
        for action in actions:
            if isinstance(action, Note) and "node_id" in action.fields:
                self._check(str(action.fields["node_id"]))

    def _check(self, node_id: str) -> None:
        drained, cordoned = self._is(node_id)
        drain, cordon = self.drains.get(node_id), self.cordons.get(node_id)
        if drain is not None and drained not in drain.possible:
            hold(Invariant.WISH_KEPT, holds=False, detail=f"{node_id} drained {drained}: {drain.possible}")
        if cordon is not None and cordoned not in cordon.possible:
            hold(Invariant.WISH_KEPT, holds=False, detail=f"{node_id} cordoned {cordoned}: {cordon.possible}")

    def _is(self, node_id: str) -> Wish:
        record = self._scene.fleet.node(node_id)
        if record is None:
            return _NONE
        return record.drain is not None and record.drain.by_operator, record.cordoned

    def _all(self) -> Iterator[Wished[bool] | Wished[str | None]]:
        yield from self.drains.values()
        yield from self.cordons.values()

    def _drain(self, node_id: str) -> Wished[bool]:
        return self.drains.setdefault(node_id, Wished(_NONE[0]))

    def _cordon(self, node_id: str) -> Wished[str | None]:
        return self.cordons.setdefault(node_id, Wished(_NONE[1]))
