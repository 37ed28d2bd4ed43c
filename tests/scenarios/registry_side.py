"""The registry's side of the wire: the pure fleet with a store, tokens and a log, all of them played.

Carries actions out as `gpu_agent.server` does: in order, and nothing told before it is kept. A store
gives back what went through JSON.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import assert_never

from gpu_agent.registry.actions import (
    Action,
    Answer,
    CloseConnection,
    Kept,
    Level,
    Note,
    Result,
    Save,
    Send,
    TellStatus,
)
from gpu_agent.registry.credentials import Credential, FreshToken
from gpu_agent.registry.documents import Restored
from gpu_agent.registry.events import (
    BeatArrived,
    ConnectionLost,
    Event,
    FaultReported,
    GoodbyeArrived,
    JoinTokenMade,
    RegistrationArrived,
    Saved,
    SaveFailed,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.registry.tokens import TokenState
from gpu_agent.server.clock import Clock
from gpu_agent.server.status_message import written
from gpu_agent.wire.codec import FrameError, decode_from_node, encode
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import (
    FromNode,
    FromRegistry,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeRegisterAck,
    NodeUnregister,
)
from tests.scenarios.transcript import Line, Transcript
from tests.scenarios.wording import EPOCH, said_by_registry

_TOLD_BY_THE_MESSAGE = {
    "node_register_received",
    "node_registered",
    "node_register_refused",
    "job_assigned",
    "claim_released",
    "dispatch_failed",
    "dispatch_candidate_excluded",
    "node_token_issued",
}
"""Notes that say once more what a message or an answer says."""


JOIN_TOKEN = "welcome"
"""Every machine of the theatre has this join token, unless it is said to have another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """How one registry is set up."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    auth_off: bool = False
    only_schema: str | None = None
    """An older registry's: it refuses every other schema, and says which it takes."""


class RegistrySide:
    """One registry, over all of its restarts."""

    def __init__(
        self,
        house: House,
        transcript: Transcript,
        *,
        now: Callable[[], float],
        send: Callable[[int, str], None],
        close: Callable[[int, int, str], None],
    ) -> None:
        self.running = True
        self.store_works = True
        self.answers: dict[int, Result] = {}
        """By `ref`, until they are read."""
        self._house = house
        self._transcript = transcript
        self._now = now
        self._clock = Clock(monotonic=now, wall=lambda: EPOCH + now())
        self._send_frame, self._close = send, close
        self._names: dict[int, str] = {}
        self._credentials: dict[int, Credential | None] = {}
        self._kept: dict[tuple[Kept, str], tuple[str, float]] = {}
        self._drawn = count()
        self._tokens_drawn = 0
        self._fresh = self._draw()
        self.fleet = self._new_fleet()
        if not house.auth_off:
            self._make_join_token()

    @property
    def deadline(self) -> float:
        due = self.fleet.deadline
        return inf if due is None or not self.running else due

    @property
    def auth_off(self) -> bool:
        return self._house.auth_off

    def wake(self) -> None:
        self._carry_out(self.fleet.wake(self._now()))

    def stop(self) -> None:
        """Be gone: every connection with it, and all that was not stored."""
        self.running = False

    def start(self) -> None:
        """Begin anew from what the store kept."""
        self.running = True
        self.fleet = self._new_fleet()
        kept = [
            Restored(kind, key, json.loads(text), self._now() - at)
            for (kind, key), (text, at) in self._kept.items()
        ]
        self._carry_out(self.fleet.restore(kept, self._now()))

    def turns_away(self, token: str | None) -> int | None:
        """Say with which status a handshake with this token fails; None when it succeeds."""
        if self.auth_off:
            return None
        credential = self._credential(token)
        if credential is None:
            return 401
        states = {one.token_id: one.state(self._now()) for one in self.fleet.tokens()}
        return 403 if states.get(credential.token_id) is TokenState.USED_UP else None

    def opened(self, connection: int, name: str, token: str | None) -> None:
        self._names[connection] = name
        self._credentials[connection] = None if self._house.auth_off else self._credential(token)

    def lost(self, connection: int) -> None:
        self.handle(ConnectionLost(connection))

    def frame_arrived(self, connection: int, frame: str) -> None:
        """Read a frame as the registry's reception does."""
        try:
            message = decode_from_node(frame.encode())
        except FrameError as error:
            refusal = NodeError(code=ErrorCode.INVALID_MESSAGE, message=str(error), details=error.details())
            self._say(connection, refusal)
            return
        only = self._house.only_schema
        if isinstance(message, NodeRegister) and only and message.capability_schema_version != only:
            refusal = NodeError(
                code=ErrorCode.INVALID_CAPABILITY_SCHEMA,
                message=f"this older registry reads schema {only} only",
                details={"supported": [only]},
            )
            self._say(connection, refusal)
        else:
            self.handle(self._event(connection, message))

    def handle(self, event: Event) -> None:
        self._carry_out(self.fleet.handle(event, self._now()))

    def _event(self, connection: int, message: FromNode) -> Event:
        match message:
            case NodeHeartbeat():
                return BeatArrived(connection, message)
            case NodeRegister():
                self._tokens_drawn += 1
                text = f"token-{self._tokens_drawn}"
                fresh = FreshToken(f"{self._tokens_drawn:08x}", text, digest_of(text))
                return RegistrationArrived(
                    connection,
                    message,
                    fresh_id=self._fresh,
                    credential=self._credentials[connection],
                    address=f"10.0.0.{connection}",
                    fresh_token=None if self._house.auth_off else fresh,
                )
            case NodeUnregister():
                return GoodbyeArrived(connection, message)
            case NodeError():
                return FaultReported(connection, message)
            case _ as unreachable:
                assert_never(unreachable)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Save):
                if not self._saved(action):
                    break  # nothing that stands behind it is told
            else:
                self._carry_out_one(action)

    def _carry_out_one(self, action: Send | TellStatus | CloseConnection | Answer | Note) -> None:
        match action:
            case Send(connection, message):
                self._say(connection, message)
            case TellStatus():
                self._say(action.connection, written(action, self._clock))
            case CloseConnection(connection, code, reason):
                self._write("registry → {}", self._names[connection], f"closes ({code}): {reason}")
                self._close(connection, code, reason)
            case Answer(ref, result):
                self.answers[ref] = result
            case Note():
                self._note(action)
            case _ as unreachable:
                assert_never(unreachable)

    def _saved(self, save: Save) -> bool:
        if not self.store_works:
            self.handle(SaveFailed(save.save, "disk full"))
            return False
        for change in save.changes:
            if change.document is None:
                self._kept.pop((change.kind, change.key), None)
            else:
                self._kept[change.kind, change.key] = (json.dumps(change.document), self._now())
        self.handle(Saved(save.save))
        return True

    def _say(self, connection: int, message: FromRegistry) -> None:
        if isinstance(message, NodeRegisterAck) and message.node_id == self._fresh:
            self._fresh = self._draw()
        self._write("registry → {}", self._names[connection], said_by_registry(message))
        self._send_frame(connection, encode(message))

    def _note(self, note: Note) -> None:
        if note.event in _TOLD_BY_THE_MESSAGE or note.level is Level.DEBUG:
            return
        fields = dict(note.fields)
        node = str(fields.pop("node_id", ""))
        if note.event == "node_status_changed":
            text = f"{fields['from'] or '–'} → {fields['to']} ({fields['reason_code']})"  # noqa: RUF001
        else:
            text = " ".join([note.event, *(f"{name}={value}" for name, value in fields.items())])
        self._write("registry: {}" if node else "registry", node, text)

    def _write(self, who: str, node: str, text: str) -> None:
        self._transcript.add(Line(self._now(), who, node, text))

    def _new_fleet(self) -> Fleet:
        return Fleet(self._house.thresholds, lambda: 0.5, auth_off=self._house.auth_off)

    def _credential(self, token: str | None) -> Credential | None:
        return None if token is None else self.fleet.credential(digest_of(token), self._now())

    def _make_join_token(self) -> None:
        made = JoinTokenMade(ref=0, token_id=JOIN_TOKEN, digest=digest_of(JOIN_TOKEN), uses=None)
        for action in self.fleet.handle(made, self._now()):
            if isinstance(action, Save):
                self._saved(action)

    def _draw(self) -> str:
        """The first ids are easy to tell apart; all are `node-` and 8 hex digits, upper case (§3.1)."""
        number = next(self._drawn)
        return f"node-{'ABCDEF'[number] * 8}" if number < 6 else f"node-{number:08X}"


def digest_of(token: str) -> str:
    return f"digest of {token}"
