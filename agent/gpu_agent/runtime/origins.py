"""Which layer a setting's value comes from, and where it stands there: a line, a variable, an option.

It looks at what was read, and judges no value.
"""

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from gpu_agent.runtime.toml_lines import Place, line_of, lines_of

NESTED = "__"
"""What parts a table's name from its key's in the name of a variable."""


class Layer(StrEnum):
    """What a value comes from, the later over the earlier."""

    DEFAULT = "default"
    FILE = "file"
    VARIABLE = "variable"
    OPTION = "option"
    CREDENTIAL = "credential"
    """Handed to the unit by systemd, where no other layer says anything."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A layer, and the place in it where there is one."""

    layer: Layer
    file: Path | None = None
    line: int | None = None
    variable: str | None = None

    @property
    def stands(self) -> bool:
        """Whether it can be looked up: what an option said, who gave it knows."""
        return self.file is not None or self.variable is not None

    def __str__(self) -> str:
        """Say it as a person looks it up."""
        if self.file is not None:
            return str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return f"variable {self.variable}" if self.variable is not None else self.layer.value


DEFAULT = Origin(Layer.DEFAULT)


class Origins:
    """Where each value of one reading comes from."""

    def __init__(self, kind: type[BaseSettings], options: Iterable[str], file: Path) -> None:
        """`options`: the names of the settings that were given as options. The file need not be there."""
        self._options = frozenset(options)
        self._prefix = kind.model_config.get("env_prefix", "")
        self._variables = {name.lower(): name for name in os.environ}
        self._file = file
        text = _text_of(file)
        self._written: Mapping[str, Any] = _tables_of(text)
        self._lines = lines_of(text) if self._written else {}

    def of(self, place: Place) -> Origin:
        """Say where the value at this very place was stated."""
        if place[0] in self._options:
            return Origin(Layer.OPTION)
        variable = self._variable(place)
        if variable is not None:
            return Origin(Layer.VARIABLE, variable=variable)
        if _holds(self._written, place):
            return Origin(Layer.FILE, file=self._file, line=line_of(place, self._lines))
        return DEFAULT

    def nearest(self, place: Place) -> Origin:
        """Say where that value, or else the nearest above it, was stated."""
        found = (self.of(place[:deep]) for deep in range(len(place), 0, -1))
        return next((origin for origin in found if origin is not DEFAULT), DEFAULT)

    def _variable(self, place: Place) -> str | None:
        """The variable that states a value: its own, or one above it that holds JSON with it."""
        for deep in range(len(place), 0, -1):
            asked = variable_of(self._prefix, place[:deep]).lower()
            name = self._variables.get(asked)
            if name is not None and _says(os.environ[name], place[deep:]):
                return name
        return None


def variable_of(prefix: str, place: Place) -> str:
    """The variable of a key: `PREFIX_KEY`, and `PREFIX_TABLE__KEY` inside a table."""
    return f"{prefix}{NESTED.join(str(step) for step in place)}".upper()


def _says(value: str, rest: Place) -> bool:
    """Whether a variable's text states what stands at `rest` below it."""
    if not rest:
        return True
    try:
        return _holds(json.loads(value), rest)
    except ValueError:  # it is written in its own way, and stands for the whole
        return True


def _holds(value: object, place: Place) -> bool:
    for step in place:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list(), int() if step < len(value):
                value = value[step]
            case _:
                return False
    return True


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _tables_of(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):  # also of a number with too many digits
        return {}
