"""The models of one node, stored compactly: thousands of nodes may declare thousands each (§3.1).

As objects a model takes some 5 KB. As the JSON text that it came in it takes some 100 bytes, and only a
person's question reads it. What dispatch reads is derived once, with one string for each id. Older nodes
repeat their models in each heartbeat: a hash shows that they are the same.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from gpu_agent.wire.heartbeat import ModelRow, Parts, model_rows
from gpu_agent.wire.messages import InstalledModel

_MOST_HELD = 32
"""Of a longer list no rows are held beside the text."""
_NOTHING_ELSE = Parts()[2:]


class ModelList:
    """Installed models and the states reported for them."""

    __slots__ = ("_key", "_models", "_same", "_states", "count")

    def __init__(
        self, models: Sequence[InstalledModel] = (), states: Mapping[str, str] | None = None
    ) -> None:
        self._models = to_json([model.as_json() for model in models])
        self._states = None if states is None else to_json(dict(states))
        self._key: int | None = None
        """Of both, once a heartbeat repeated them."""
        self._same: Parts | None = None
        """What repeated both last: the reader of heartbeats has one object for the same short text."""
        self.count = len(models)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelList):
            return NotImplemented
        return self._models == other._models and self._states == other._states

    __hash__ = None  # type: ignore[assignment]  # compared by its content, never a key

    def is_all_of(self, parts: Parts) -> bool:
        """Whether a heartbeat replaces nothing but models and states, and these are the same."""
        if parts is self._same:
            return True
        rows = parts.installed_models
        if rows is None or parts[2:] != _NOTHING_ELSE or not self.lists(rows, parts.capability_state):
            return False
        if len(rows) <= _MOST_HELD:
            self._same = parts
        return True

    def lists(self, rows: tuple[ModelRow, ...], states: Mapping[str, str] | None) -> bool:
        """Whether these are the models, in this order, and their states."""
        if self._key is None:
            self._key = _key_of(model_rows(self.models()), self.states())
        return self._key == _key_of(rows, states)

    def models(self) -> tuple[InstalledModel, ...]:
        """Read the models."""
        return _models().validate_json(self._models)

    def states(self) -> dict[str, str] | None:
        """Read `capability_state`; None where the node sent none."""
        return None if self._states is None else _states().validate_json(self._states)

    def as_json(self) -> dict[str, Any]:
        """Return both as a registration writes them."""
        states = {} if self._states is None else {"capability_state": from_json(self._states)}
        return {"installed_models": from_json(self._models), **states}

    def has_states(self, states: Mapping[str, str]) -> bool:
        """Whether these are the states, in this order: another order is no harm, and counts as a change."""
        return self._states == to_json(dict(states))

    @property
    def size_bytes(self) -> int:
        """How much it takes."""
        return len(self._models) + len(self._states or b"")


def _key_of(rows: tuple[ModelRow, ...], states: Mapping[str, str] | None) -> int:
    """Return a hash of 64 bits, of which no peer knows the seed."""
    return hash((rows, None if states is None else tuple(states.items())))


@cache
def _models() -> TypeAdapter[tuple[InstalledModel, ...]]:
    return TypeAdapter(tuple[InstalledModel, ...])


@cache
def _states() -> TypeAdapter[dict[str, str]]:
    return TypeAdapter(dict[str, str])
