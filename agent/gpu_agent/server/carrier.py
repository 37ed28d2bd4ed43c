"""Carries the fleet's actions out, in order: what was to be saved is kept before anything is told.

Where a save fails, what stood behind it is left undone, and the fleet hears of the failure.
Decides nothing.
"""

import asyncio
from collections.abc import Callable
from typing import assert_never

from gpu_agent.registry.actions import (
    Action,
    Answer,
    Change,
    CloseConnection,
    Level,
    Note,
    Result,
    Save,
    Send,
    TellStatus,
)
from gpu_agent.registry.events import Saved, SaveFailed
from gpu_agent.runtime.logs import EventLog
from gpu_agent.server.chronicle import Chronicle, RegistryEvent
from gpu_agent.server.clock import Clock
from gpu_agent.server.status_message import written
from gpu_agent.server.switchboard import Switchboard
from gpu_agent.store.base import Store, StoreError
from gpu_agent.wire.codec import FrameError, encode
from gpu_agent.wire.fields import WireModel
from gpu_agent.wire.messages import NodeRegisterAck

WRITTEN_AT = "written_at"
DOCUMENT = "document"

_INTERNAL_ERROR = 1011
"""The WebSocket code for a fault of ours."""

_LOG = EventLog("registry")


class Carrier:
    """The fleet's hands: store, sockets, log, and those who wait for an answer."""

    def __init__(self, store: Store, chronicle: Chronicle, switchboard: Switchboard, *, clock: Clock) -> None:
        self.answers: dict[int, asyncio.Future[Result]] = {}
        """By `ref`: who waits for which answer."""
        self._store = store
        self._chronicle = chronicle
        self._switchboard = switchboard
        self._clock = clock

    def carry_out(self, action: Action) -> Saved | SaveFailed | None:
        """Do one thing; for a save, return what became of it, for the fleet to hear."""
        match action:
            case Save():
                return self._save(action)
            case Send(connection, message):
                self._send(connection, message)
                if isinstance(message, NodeRegisterAck):
                    self._switchboard.identify(connection, message.node_id)
            case TellStatus(connection=connection):
                self._send(connection, written(action, self._clock))
            case CloseConnection(connection, code, reason):
                self._switchboard.close(connection, code, reason)
            case Answer(ref, result):
                self._answer(ref, result)
            case Note():
                self._note(action)
            case _ as unreachable:
                assert_never(unreachable)
        return None

    def _send(self, connection: int, message: WireModel) -> None:
        """Send; a message too long to be sent costs its own connection, never what stands behind it."""
        try:
            text = encode(message)
        except FrameError as error:
            _LOG.error("message_not_sent", connection=connection, problem=str(error))
            self._switchboard.close(connection, _INTERNAL_ERROR, "the registry could not write its message")
        else:
            self._switchboard.send(connection, text)

    def _save(self, action: Save) -> Saved | SaveFailed:
        now = round(self._clock.wall(), 3)
        changes = [
            change
            if change.document is None
            else Change(change.kind, change.key, {WRITTEN_AT: now, DOCUMENT: change.document})
            for change in action.changes
        ]
        try:
            self._store.save(changes)
        except StoreError as error:
            return SaveFailed(action.save, str(error))
        return Saved(action.save)

    def _answer(self, ref: int, result: Result) -> None:
        waiting = self.answers.pop(ref, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def _note(self, note: Note) -> None:
        _EMIT[note.level](note.event, **note.fields)
        if note.level is not Level.DEBUG:
            node_id = note.fields.get("node_id")
            self._chronicle.add(
                RegistryEvent(
                    at=round(self._clock.wall(), 3),
                    event=note.event,
                    node_id=node_id if isinstance(node_id, str) else None,
                    fields={name: value for name, value in note.fields.items() if name != "node_id"},
                )
            )


_EMIT: dict[Level, Callable[..., None]] = {
    Level.DEBUG: _LOG.debug,
    Level.INFO: _LOG.info,
    Level.WARNING: _LOG.warning,
}
