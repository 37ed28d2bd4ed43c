"""Which changes the store has not confirmed yet, and which answers wait for them (§4).

A change shapes the registry's own decisions at once, but nothing that depends on it is sent before it is
stored. A save that fails is never undone: the shell retries the newest document of each key until the store
holds it. Requests that waited were refused with `REGISTRY_BUSY`, so two things that no one knows of are
deleted: a token whose text was sent to no one, and the record of a node that was never acknowledged.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TypeVar

from gpu_agent.registry.actions import Answer, CloseConnection, Refusal, Send
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_sentence
from gpu_agent.registry.step import Key, Step
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import NodeError, NodeRegisterAck

RESTART_SECONDS = 5.0
"""A store that gave no answer for so long and answers again counts as a restart of the registry (§4)."""

BUSY_RETRY_SECONDS = 5.0

_Name = TypeVar("_Name")
_Effect = TypeVar("_Effect")


class UnstoredChanges:
    """Numbers the outputs that change documents, and knows which of them the store has confirmed."""

    def __init__(self) -> None:
        self.store_fails = False
        """True from a failed save until all that waits is stored: then no deadline is decided."""
        self.problem = ""
        """Why the store fails."""
        self._number = 0
        self._keys: dict[Key, int] = {}
        """By document: the last output that changes it, in the order of the outputs."""
        self._tokens: dict[str, int] = {}
        """Created, but not sent to anybody yet."""
        self._registered: dict[str, tuple[int, NodeRecord]] = {}
        """New nodes that are not acknowledged yet."""

    def holds(self, key: Key) -> bool:
        """Say whether the newest form of a document is not stored."""
        return key in self._keys

    def add(self, step: Step) -> int:
        """Number the output of a step that changes something."""
        self._number += 1
        for key in step.changed:
            self._keys.pop(key, None)
            self._keys[key] = self._number
        self._tokens.update(dict.fromkeys(step.tokens_created, self._number))
        for record in step.registered:
            if not record.acknowledged:
                self._registered.setdefault(record.node_id, (self._number, record))
        return self._number

    def confirm(self, number: int) -> None:
        """Record that every output up to this one is stored, and its effects are carried out."""
        _forget(self._keys, number)
        _forget(self._tokens, number)
        numbers = {node_id: at for node_id, (at, _) in self._registered.items()}
        for node_id in _up_to(numbers, number):
            self._registered.pop(node_id)[1].acknowledged = True

    def fail(self, problem: str) -> list[str]:
        """Record that no waiting request is answered; returns the tokens that no one knows of."""
        self.store_fails, self.problem = True, problem
        self._registered.clear()
        unsent = list(self._tokens)
        self._tokens.clear()
        return unsent

    def recover(self) -> None:
        """Record that all that waited is stored."""
        self.store_fails, self.problem = False, ""

    def refusal(self) -> Refusal:
        """Refuse a request that would change something while the store fails."""
        message = (
            "the registry cannot store anything at the moment, and has changed nothing: send the same "
            "request again in a moment"
        )
        return Refusal(ErrorCode.REGISTRY_BUSY, clip_sentence(f"{message}; {self.problem}"))


def split_answers(effects: Sequence[_Effect], problem: str) -> tuple[list[Answer | Send], list[_Effect]]:
    """Separate the answers that wait: returns a refusal with `REGISTRY_BUSY` for each, and the rest.

    A node waits for an acknowledgement or a refusal, but for no message before its connection is closed.
    """
    closed = {effect.connection for effect in effects if isinstance(effect, CloseConnection)}
    refusals: list[Answer | Send] = []
    rest: list[_Effect] = []
    for effect in effects:
        match effect:
            case Answer(ref):
                refusals.append(Answer(ref, _outcome_unknown(problem)))
            case Send(connection, NodeRegisterAck() | NodeError() as message) if connection not in closed:
                refusals.append(Send(connection, busy_error(message.node_id)))
            case _:
                rest.append(effect)
    return refusals, rest


def busy_error(node_id: str | None) -> NodeError:
    """Ask a node to register again in a moment, without the reason why the store fails."""
    return NodeError(
        node_id=node_id,
        code=ErrorCode.REGISTRY_BUSY,
        message="the registry cannot store this registration at the moment: register again in a moment",
        retry_after_seconds=BUSY_RETRY_SECONDS,
    )


def _outcome_unknown(problem: str) -> Refusal:
    message = "the outcome is not known yet: send the same request again"
    return Refusal(ErrorCode.REGISTRY_BUSY, clip_sentence(f"{message}; {problem}"))


def _up_to(numbers: Mapping[_Name, int], last: int) -> list[_Name]:
    return [name for name, _ in takewhile(lambda item: item[1] <= last, numbers.items())]


def _forget(numbers: dict[_Name, int], last: int) -> None:
    for name in _up_to(numbers, last):
        del numbers[name]
