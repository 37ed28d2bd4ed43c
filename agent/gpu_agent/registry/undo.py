"""Takes back what was asked of a node, a claim or a token and could not be saved (§4).

What happened besides, such as beats and lost connections, is not undone, and neither is what the
registry has decided since: where a status stands on a wish that is gone, the node is led on from there
at its next look.
"""

from dataclasses import replace

from gpu_agent.registry import reversal
from gpu_agent.registry.actions import Kept
from gpu_agent.registry.house import House
from gpu_agent.registry.job import Claim
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Key, Step, Was
from gpu_agent.registry.tokens import Token


class Undo:
    """Undoes what was decided, told to no one, and could not be kept."""

    def __init__(self, house: House) -> None:
        self._house = house

    def as_it_is(self, key: Key) -> Was:
        """Return how a thing is now, as a copy that stays so."""
        kind, name = key
        if kind is Kept.CLAIM:
            return self._house.dispatch.claim_of(name)
        if kind is Kept.TOKEN:
            return self._house.tokens.by_id.get(name)
        record = self._house.roster.records.get(name)
        return None if record is None else replace(record)

    def put_back(self, key: Key, before: Was, after: Was, *, step: Step) -> None:
        """Take back what led from `before` to `after`; None stands for what did not exist."""
        kind, name = key
        if kind is Kept.CLAIM:
            self._claim(name, before, after)
        elif kind is Kept.TOKEN:
            self._token(name, before, after)
        else:
            self._node(name, before, after, step=step)
            step.touched[name] = None

    def _claim(self, job_id: str, before: Was, after: Was) -> None:
        dispatch = self._house.dispatch
        if before is None and isinstance(after, Claim):
            self._house.claiming.disown(after)
        if dispatch.claim_of(job_id) != after:
            return
        if isinstance(before, Claim):
            dispatch.attach(before)
        else:
            dispatch.release(job_id)

    def _token(self, token_id: str, before: Was, after: Was) -> None:
        tokens = self._house.tokens
        present = tokens.by_id.get(token_id)
        if before is None:
            tokens.drop(token_id)
        elif isinstance(before, Token) and isinstance(after, Token) and present is not None:
            tokens.put(reversal.taken_back(before, after, present))

    def _node(self, node_id: str, before: Was, after: Was, *, step: Step) -> None:
        house = self._house
        record = house.roster.records.get(node_id)
        if not isinstance(before, NodeRecord):
            if record is not None:
                house.claiming.lose(record, step)
                house.roster.drop(record)
                house.dispatch.forget(node_id)
                house.claiming.forget(node_id)
        elif record is None:  # let go by this, or on the strength of it
            self._bring_back(before)
        elif isinstance(after, NodeRecord):
            self._take_back(record, before, after)

    def _bring_back(self, before: NodeRecord) -> None:
        connection, before.connection = before.connection, None
        self._house.roster.add(before)
        self._reconnect(before, connection)
        self._house.dispatch.refresh(before)

    def _take_back(self, record: NodeRecord, before: NodeRecord, after: NodeRecord) -> None:
        for name, part in reversal.parts_of_node(before, after, record).items():
            setattr(record, name, part)
        if record.connection in (after.connection, None):
            self._reconnect(record, before.connection)
        self._house.dispatch.refresh(record)

    def _reconnect(self, record: NodeRecord, connection: int | None) -> None:
        """Let the connection of before stand for the node again, if it is still there."""
        roster = self._house.roster
        if record.connection == connection:
            return
        if record.connection is not None:
            roster.unbind(record.connection)
        if connection is not None and roster.recall(connection):
            roster.bind(record, connection)
