"""Carries out what the fleet wants told, once what it stands behind is kept: sockets, log, answers.

Decides nothing and keeps nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import assert_never

from gpu_agent.registry.actions import Action, Answer, CloseConnection, Level, Note, Result, Send, TellStatus
from gpu_agent.runtime.logs import EventLog
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.clerk import Clerk, Doing, Open, Publish, Ready
from gpu_agent.server.clock import Clock
from gpu_agent.server.refused_registrations import quieted
from gpu_agent.server.status_message import written
from gpu_agent.server.switchboard import Switchboard
from gpu_agent.server.tally import Tally
from gpu_agent.wire.codec import FrameError, encode
from gpu_agent.wire.codes import CloseCode
from gpu_agent.wire.fields import WireModel
from gpu_agent.wire.messages import NodeRegisterAck

_LOG = EventLog("registry")


class Carrier:
    """The fleet's hands: sockets, log, and those who wait for an answer."""

    def __init__(self, chronicle: Chronicle, switchboard: Switchboard, *, clock: Clock, tally: Tally) -> None:
        self.answers: dict[int, asyncio.Future[Result]] = {}
        """By `ref`: who waits for which answer."""
        self._chronicle = chronicle
        self._switchboard = switchboard
        self._clock = clock
        self._tally = tally
        self._clerk = Clerk(chronicle, clock)

    def make_ready(self, actions: Sequence[Action]) -> Ready:
        """Sort a list into what must be kept, and what is done once it is."""
        return self._clerk.make_ready(quieted(actions, self._switchboard.quieting))

    def carry_out(self, doing: Doing) -> None:
        """Do one thing."""
        match doing:
            case Send() | TellStatus() | CloseConnection():
                self._speak(doing)
            case Answer(ref, result):
                self._answer(ref, result)
            case Note():
                self._tally.count(doing.event, doing.fields)
                _EMIT[doing.level](doing.event, **doing.fields)
            case Publish():
                self._publish(doing)
            case Open(changes):
                self._chronicle.keep(changes)
            case _ as unreachable:
                assert_never(unreachable)

    def _speak(self, doing: Send | TellStatus | CloseConnection) -> None:
        match doing:
            case Send(connection, message):
                self._send(connection, message)
                if isinstance(message, NodeRegisterAck):
                    self._switchboard.identify(connection, message.node_id)
            case TellStatus():
                self._send(doing.connection, written(doing, self._clock))
            case CloseConnection(connection, code, reason):
                self._switchboard.close(connection, code, reason)

    def _send(self, connection: int, message: WireModel) -> None:
        """Send; a message too long to be sent costs its own connection, never what stands behind it."""
        try:
            text = encode(message)
        except FrameError as error:
            _LOG.error("message_not_sent", connection=connection, problem=str(error))
            problem = "the registry could not write its message"
            self._switchboard.close(connection, CloseCode.INTERNAL_ERROR, problem)
        else:
            self._switchboard.send(connection, text)

    def _answer(self, ref: int, result: Result) -> None:
        waiting = self.answers.pop(ref, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def _publish(self, doing: Publish) -> None:
        event = doing.event
        named = {} if event.node_id is None else {"node_id": event.node_id}
        numbered = {} if event.id is None else {"event_id": event.id}
        _EMIT[doing.level](event.event, **numbered, **named, **event.fields)
        self._tally.count(event.event, event.fields)
        self._chronicle.add(event)


_EMIT: dict[Level, Callable[..., None]] = {
    Level.DEBUG: _LOG.debug,
    Level.INFO: _LOG.info,
    Level.WARNING: _LOG.warning,
}
