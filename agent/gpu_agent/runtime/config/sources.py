"""Where a setting's value comes from: a line, a variable, an option; and variables that name no setting.

A mistyped variable would be ignored in silence, so it is reported. Kubernetes sets `GPU_AGENT_PORT` and the like for
a service of our name; those are no mistake.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic_settings import BaseSettings, NoDecode

from gpu_agent.runtime.logs import Logger

# Where the keys of a TOML text stand, by line: so that a fault can name the line that has it.
#
# It reads what `tomllib` has taken before, and understands no values. A key that stands inside an inline
# table is found where that table begins.


KeyPath = tuple[str | int, ...]
"""A key and those above it, from the top; a number is a place in an array."""

_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_TABLE = re.compile(rf"[ \t]*(?P<opened>\[\[?)[ \t]*(?P<name>{_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*(?P<name>{_DOTTED})[ \t]*=")

_END = re.compile(r"""]|}|\"{3}|'{3}""")
"""What a line must have to end an array or a text of many lines: only such are worth reading all anew."""


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """Find every key's line, the first being 1; of a table, its heading's."""
    found: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in _statements(text):
        heading = _TABLE.match(line)
        if heading is not None:
            table = _opened(heading, counts)
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key is not None:
            found.setdefault((*table, *_steps(key["name"])), number)
    return found


def line_of_key(place: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """The line of a key, else of the nearest above it that stands somewhere."""
    return next((lines[place[:deep]] for deep in range(len(place), 0, -1) if place[:deep] in lines), None)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that begin a statement: none that is inside an array or a text of many lines."""
    waiting: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not waiting:
            yield number, line
        waiting.append(line)
        ends = len(waiting) == 1 or _END.search(line) is not None
        if ends and _whole("\n".join(waiting)):
            waiting.clear()


def _whole(part: str) -> bool:
    try:
        tomllib.loads(part)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _opened(heading: re.Match[str], counts: dict[KeyPath, int]) -> KeyPath:
    """Name the table that a heading opens; each `[[…]]` opens another of its array."""
    place: KeyPath = ()
    *above, last = _steps(heading["name"])
    for step in above:
        place = (*place, step)
        place = (*place, counts[place] - 1) if place in counts else place
    place = (*place, last)
    if heading["opened"] == "[[":
        counts[place] = counts.get(place, 0) + 1
    return (*place, counts[place] - 1) if place in counts else place


def _steps(dotted: str) -> list[str]:
    """Split a key at its dots, as TOML does."""
    here: object = tomllib.loads(f"{dotted} = 0")
    steps: list[str] = []
    while isinstance(here, dict):
        step, here = next(iter(here.items()))
        steps.append(step)
    return steps


# Which layer a setting's value comes from, and where it stands there: a line, a variable, an option.
#
# It looks at what was read, and judges no value.


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
class SettingSource:
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


DEFAULT = SettingSource(Layer.DEFAULT)


class SettingSources:
    """Where each value of one reading comes from."""

    def __init__(self, kind: type[BaseSettings], options: Iterable[str], file: Path) -> None:
        """`options`: the names of the settings that were given as options. The file need not be there."""
        self._options = frozenset(options)
        self._prefix = kind.model_config.get("env_prefix", "")
        self._variables = {name.lower(): name for name in os.environ}
        self._file = file
        text = _text_of(file)
        self._written: Mapping[str, Any] = _tables_of(text)
        self._lines = key_lines(text) if self._written else {}

    def of(self, place: KeyPath) -> SettingSource:
        """Say where the value at this very place was stated."""
        if place[0] in self._options:
            return SettingSource(Layer.OPTION)
        variable = self._variable(place)
        if variable is not None:
            return SettingSource(Layer.VARIABLE, variable=variable)
        if _holds(self._written, place):
            return SettingSource(Layer.FILE, file=self._file, line=line_of_key(place, self._lines))
        return DEFAULT

    def nearest(self, place: KeyPath) -> SettingSource:
        """Say where that value, or else the nearest above it, was stated."""
        found = (self.of(place[:deep]) for deep in range(len(place), 0, -1))
        return next((origin for origin in found if origin is not DEFAULT), DEFAULT)

    def _variable(self, place: KeyPath) -> str | None:
        """The variable that states a value: its own, or one above it that holds JSON with it."""
        for deep in range(len(place), 0, -1):
            asked = variable_name(self._prefix, place[:deep]).lower()
            name = self._variables.get(asked)
            if name is not None and _says(os.environ[name], place[deep:]):
                return name
        return None


def variable_name(prefix: str, place: KeyPath) -> str:
    """The variable of a key: `PREFIX_KEY`, and `PREFIX_TABLE__KEY` inside a table."""
    return f"{prefix}{NESTED.join(str(step) for step in place)}".upper()


def _says(value: str, rest: KeyPath) -> bool:
    """Whether a variable's text states what stands at `rest` below it."""
    if not rest:
        return True
    try:
        return _holds(json.loads(value), rest)
    except ValueError:  # it is written in its own way, and stands for the whole
        return True


def _holds(value: object, place: KeyPath) -> bool:
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


# Variables that are named like a setting and are none: mistyped ones, which would be ignored in silence.
#
# It knows names only, and shows no value. What Kubernetes sets for a service of our name is no mistake,
# nor
# is what the program's own commands read besides the settings.


COMMAND_VARIABLES = frozenset(
    {
        "GPU_AGENT_DEBUG",
        "GPU_REGISTRY_API",
        "GPU_REGISTRY_TOKEN",
        "GPU_REGISTRY_CA_FILE",
        "GPU_REGISTRY_CERT_FILE",
        "GPU_REGISTRY_KEY_FILE",
    }
)
"""What the commands read that is no setting of either half."""

_OF_SERVICES = re.compile(r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)\w*)?)$")
"""How Kubernetes ends the variables that tell of a service."""
_LOG = Logger("runtime")


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that no setting is named after."""

    variable: str
    nearest: str | None = None
    """The one that was probably meant."""

    def __str__(self) -> str:
        """Say it as a sentence."""
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"variable {self.variable} is ignored: no setting has that name{hint}"


def unknown_variables(kind: type[BaseSettings], environ: Iterable[str]) -> list[UnknownVariable]:
    """Find them among the names of all variables, in alphabetical order."""
    prefix = str(kind.model_config.get("env_prefix", "")).upper()
    known = frozenset(_variables(kind, prefix))
    free = tuple(_of_free_tables(kind, prefix))
    return [
        UnknownVariable(name, _nearest(name.upper(), prefix, known))
        for name in sorted(environ)
        if name.upper().startswith(prefix)
        and not name.upper().startswith(free)
        and not _is_known(name.upper(), prefix, known)
    ]


def log_unknown_variables(kind: type[BaseSettings], environ: Iterable[str]) -> None:
    """Log each of them."""
    for stray in unknown_variables(kind, environ):
        _LOG.warning("variable_unknown", variable=stray.variable, nearest=stray.nearest)


def _variables(kind: type[BaseModel], prefix: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the variable of each setting, and of each key in a table that stands once."""
    for name, field in kind.model_fields.items():
        yield variable_name(prefix, (*above, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, prefix, (*above, name))


def _of_free_tables(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield how the variables begin that state a key of a table whose keys are the owner's own."""
    for name, field in kind.model_fields.items():
        if get_origin(field.annotation) is dict and NoDecode not in field.metadata:
            yield variable_name(prefix, (name,)) + NESTED


def _is_known(name: str, prefix: str, known: frozenset[str]) -> bool:
    return name in known or name in COMMAND_VARIABLES or bool(_OF_SERVICES.search(name.removeprefix(prefix)))


def _nearest(name: str, prefix: str, known: frozenset[str]) -> str | None:
    """What stands before a key that the setting has no place for, else what looks most like it."""
    whole = name.partition(NESTED)[0]
    if whole in known and whole != name and not any(one.startswith(f"{whole}{NESTED}") for one in known):
        return whole
    telling = {one.removeprefix(prefix): one for one in sorted(known)}  # all begin alike
    found = difflib.get_close_matches(name.removeprefix(prefix), telling, 1)
    return telling[found[0]] if found else None
