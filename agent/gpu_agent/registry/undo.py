"""Puts a node, a claim or a token back to how it was before a request that could not be saved (§4).

What happened besides, such as beats and lost connections, is not undone.
"""

from dataclasses import fields

from gpu_agent.registry.actions import Kept
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.job import Claim
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.step import Key, Step, Was
from gpu_agent.registry.tokens import Token, Tokens

_OWN_LIFE = frozenset({"claims", "connection"})
"""What of a record is not put back with it: dispatch owns the claims, the roster the connection."""


class Undo:
    """Undoes what was decided, told to no one, and could not be kept."""

    def __init__(self, roster: Roster, dispatch: Dispatch, tokens: Tokens) -> None:
        self._roster = roster
        self._tokens = tokens
        self._dispatch = dispatch

    def put_back(self, key: Key, before: Was, step: Step) -> None:
        """Restore one thing; None means that it did not exist."""
        kind, name = key
        if kind is Kept.CLAIM:
            self._claim(name, before if isinstance(before, Claim) else None)
        elif kind is Kept.TOKEN:
            self._token(name, before if isinstance(before, Token) else None)
        else:
            self._node(name, before if isinstance(before, NodeRecord) else None)
            step.touched[name] = None

    def _claim(self, job_id: str, before: Claim | None) -> None:
        if before is None:
            self._dispatch.release(job_id)
        else:
            self._dispatch.attach(before)

    def _token(self, token_id: str, before: Token | None) -> None:
        if before is None:
            self._tokens.drop(token_id)
        else:
            self._tokens.put(before)

    def _node(self, node_id: str, before: NodeRecord | None) -> None:
        record = self._roster.records.get(node_id)
        if before is None:
            if record is not None:
                self._roster.drop(record)
                self._dispatch.forget(node_id)
            return
        connection = before.connection
        if record is None:
            record = before
            record.connection = None
            self._roster.add(record)
        for one in fields(NodeRecord):
            if one.name not in _OWN_LIFE:
                setattr(record, one.name, getattr(before, one.name))
        self._reconnect(record, connection)
        self._dispatch.refresh(record)

    def _reconnect(self, record: NodeRecord, connection: int | None) -> None:
        """Let the connection of before stand for the node again, if it is still there."""
        if record.connection == connection:
            return
        if record.connection is not None:
            self._roster.unbind(record.connection)
        if connection is not None and self._roster.recall(connection):
            self._roster.bind(record, connection)
