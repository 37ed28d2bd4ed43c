"""Where a setting's value comes from: a line, a variable, an option; and variables that name no setting.

A mistyped variable would be ignored in silence, so it is reported. Kubernetes sets `GPU_AGENT_PORT` and the
like for a service of our name; those are no mistake.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic_settings import BaseSettings, NoDecode

from gpu_agent.records import dataclass
from gpu_agent.runtime.config.fields import ADVANCED, by_first_name, other_names, without_advanced_table
from gpu_agent.runtime.logs import Logger

KeyPath = tuple[str | int, ...]
"""A key and those above it, from the top; a number is an index in an array."""

NESTED = "__"
"""Separates a table's name from its key's in the name of a variable."""

COMMAND_VARIABLES = frozenset(
    {
        "GPU_AGENT_DEBUG",
        "GPU_REGISTRY_SERVER",
        "GPU_REGISTRY_TOKEN",
        "GPU_REGISTRY_CA_FILE",
        "GPU_REGISTRY_CERT_FILE",
        "GPU_REGISTRY_KEY_FILE",
    }
)
"""Variables that commands read and that are no settings of a component."""

_SERVICE_VARIABLE = re.compile(
    r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)\w*)?)$"
)
"""How the variables end that Kubernetes sets for a service."""

_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_TABLE = re.compile(rf"[ \t]*(?P<opened>\[\[?)[ \t]*(?P<name>{_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*(?P<name>{_DOTTED})[ \t]*=")
_END = re.compile(r"""]|}|\"{3}|'{3}""")
"""What a line must hold to end an array or a text of many lines: only then are those parsed again."""

_LOG = Logger("runtime")


class Layer(StrEnum):
    """What a value comes from, the later over the earlier."""

    DEFAULT = "default"
    FILE = "file"
    VARIABLE = "variable"
    OPTION = "option"
    CREDENTIAL = "credential"
    """Handed to the unit by systemd, where no other layer states a value."""


@dataclass(frozen=True, slots=True)
class SettingSource:
    """A layer, and the location in it where there is one."""

    layer: Layer
    file: Path | None = None
    line: int | None = None
    variable: str | None = None

    @property
    def has_location(self) -> bool:
        """Whether there is a file or a variable to look into; the caller knows the options."""
        return self.file is not None or self.variable is not None

    def __str__(self) -> str:
        """Name it as a person looks it up."""
        if self.file is not None:
            return str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return f"variable {self.variable}" if self.variable is not None else self.layer.value


DEFAULT = SettingSource(Layer.DEFAULT)


class SettingSources:
    """Where each value of one reading comes from."""

    def __init__(self, kind: type[BaseSettings], options: Iterable[str], file: Path) -> None:
        """`options`: the names of the settings that were given as options. The file need not exist."""
        self._options = frozenset(options)
        self._prefix = kind.model_config.get("env_prefix", "")
        self._variables = {name.lower(): name for name in os.environ}
        for first, variable in other_variables(kind).items():
            self._variables.setdefault(variable_name(self._prefix, (first,)).lower(), variable)
        self._file = file
        text, first_names = text_of(file), other_names(kind)
        self._written: Mapping[str, Any] = by_first_name(kind, without_advanced_table(kind, _tables_of(text)))
        found = key_lines(text) if self._written else {}
        lines = {(first_names.get(str(path[0]), path[0]), *path[1:]): n for path, n in found.items()}
        self._lines = {path[1:] if path[0] == ADVANCED and path[1:] else path: n for path, n in lines.items()}

    def of(self, path: KeyPath) -> SettingSource:
        """Return where the value at this very path was stated."""
        if path[0] in self._options:
            return SettingSource(Layer.OPTION)
        variable = self._variable(path)
        if variable is not None:
            return SettingSource(Layer.VARIABLE, variable=variable)
        if _holds(self._written, path):
            return SettingSource(Layer.FILE, file=self._file, line=line_of_key(path, self._lines))
        return DEFAULT

    def nearest(self, path: KeyPath) -> SettingSource:
        """Return where that value, or else the nearest above it, was stated."""
        found = (self.of(path[:deep]) for deep in range(len(path), 0, -1))
        return next((source for source in found if source is not DEFAULT), DEFAULT)

    def _variable(self, path: KeyPath) -> str | None:
        """The variable that states a value: its own, or one above it whose JSON holds it."""
        for deep in range(len(path), 0, -1):
            name = self._variables.get(variable_name(self._prefix, path[:deep]).lower())
            if name is not None and _states(os.environ[name], path[deep:]):
                return name
        return None


def variable_name(prefix: str, path: KeyPath) -> str:
    """Name the variable of a key: `PREFIX_KEY`, and `PREFIX_TABLE__KEY` inside a table."""
    return f"{prefix}{NESTED.join(str(step) for step in path)}".upper()


def other_variables(kind: type[BaseSettings]) -> dict[str, str]:
    """Find the variables that state a setting by its other name, and map its first name to them."""
    prefix, there = str(kind.model_config.get("env_prefix", "")), {name.upper(): name for name in os.environ}
    variables = {first: variable_name(prefix, (other,)) for other, first in other_names(kind).items()}
    return {first: there[variable] for first, variable in variables.items() if variable in there}


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable with our prefix that names no setting."""

    variable: str
    nearest: str | None = None
    """The one that was probably meant."""

    def __str__(self) -> str:
        """Write it as a sentence."""
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"variable {self.variable} is ignored: no setting has that name{hint}"


def unknown_variables(kind: type[BaseSettings], environ: Iterable[str]) -> list[UnknownVariable]:
    """Find them among the names of all variables, in alphabetical order. No value is read."""
    prefix = str(kind.model_config.get("env_prefix", "")).upper()
    others = (variable_name(prefix, (name,)) for name in other_names(kind))
    known = frozenset((*_variables_of(kind, prefix), *others))
    free = tuple(_free_table_prefixes(kind, prefix))
    return [
        UnknownVariable(name, _nearest_variable(name.upper(), prefix, known))
        for name in sorted(environ)
        if name.upper().startswith(prefix)
        and not name.upper().startswith(free)
        and not _is_known(name.upper(), prefix, known)
    ]


def log_unknown_variables(kind: type[BaseSettings], environ: Iterable[str]) -> None:
    """Log each of them."""
    for unknown in unknown_variables(kind, environ):
        _LOG.warning("variable_unknown", variable=unknown.variable, nearest=unknown.nearest)


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """Find the line of every key in a TOML text, the first being 1; of a table, its heading's.

    The text must be valid. A key inside an inline table has the line where that table begins.
    """
    found: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in _statements(text):
        heading = _TABLE.match(line)
        if heading is not None:
            table = _opened_table(heading, counts)
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key is not None:
            found.setdefault((*table, *_steps(key["name"])), number)
    return found


def first_repetition(text: str) -> tuple[str, int, int] | None:
    """Find what a text states twice, which TOML forbids: a key or `[table]`, its second line, its first.

    Of a text that is faulty otherwise only what comes before that fault is read.
    """
    try:
        return _repetition_in(text)
    except (ValueError, RecursionError):  # as its reader says
        return None


def _repetition_in(text: str) -> tuple[str, int, int] | None:
    seen: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in _statements(text):
        heading, key = _TABLE.match(line), _KEY.match(line)
        if heading is not None:
            table = _opened_table(heading, counts)
            path, name = table, f"[{heading['name']}]"
        elif key is not None:
            path = (*table, *_steps(key["name"]))
            name = ".".join(map(str, path))
        else:
            continue
        if path in seen:
            return name, number, seen[path]
        seen[path] = number
    return None


def line_of_key(path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """Return the line of a key, else of the nearest key above it that has one."""
    return next((lines[path[:deep]] for deep in range(len(path), 0, -1) if path[:deep] in lines), None)


def _states(value: str, rest: KeyPath) -> bool:
    """Whether a variable's text states what is at `rest` below it."""
    if not rest:
        return True
    try:
        return _holds(json.loads(value), rest)
    except ValueError:  # it has a form of its own, and states the whole
        return True


def _holds(value: object, path: KeyPath) -> bool:
    for step in path:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list(), int() if step < len(value):
                value = value[step]
            case _:
                return False
    return True


def text_of(file: Path) -> str:
    """Read a file; empty where it cannot be read as text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _tables_of(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):  # also of a number with too many digits
        return {}


def _variables_of(kind: type[BaseModel], prefix: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the variable of each setting, and of each key in a table that exists once."""
    for name, field in kind.model_fields.items():
        yield variable_name(prefix, (*above, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables_of(field.annotation, prefix, (*above, name))


def _free_table_prefixes(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield how the variables begin that state a key of a table whose keys the owner chooses."""
    for name, field in kind.model_fields.items():
        if get_origin(field.annotation) is dict and NoDecode not in field.metadata:
            yield variable_name(prefix, (name,)) + NESTED


def _is_known(name: str, prefix: str, known: frozenset[str]) -> bool:
    if name in known or name in COMMAND_VARIABLES:
        return True
    return _SERVICE_VARIABLE.search(name.removeprefix(prefix)) is not None


def _nearest_variable(name: str, prefix: str, known: frozenset[str]) -> str | None:
    """The part before a key for which the setting has no table, else the most similar name."""
    whole = name.partition(NESTED)[0]
    if whole in known and whole != name and not any(one.startswith(f"{whole}{NESTED}") for one in known):
        return whole
    by_rest = {one.removeprefix(prefix): one for one in sorted(known)}  # the prefix is the same for all
    import difflib  # noqa: PLC0415 - for a mistake alone

    found = difflib.get_close_matches(name.removeprefix(prefix), by_rest, 1)
    return by_rest[found[0]] if found else None


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that begin a statement: none inside an array or a text of many lines."""
    waiting: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not waiting:
            yield number, line
        waiting.append(line)
        ends = len(waiting) == 1 or _END.search(line) is not None
        if ends and _is_complete("\n".join(waiting)):
            waiting.clear()


def _is_complete(part: str) -> bool:
    try:
        tomllib.loads(part)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _opened_table(heading: re.Match[str], counts: dict[KeyPath, int]) -> KeyPath:
    """Name the table that a heading opens; each `[[…]]` opens another one of its array."""
    path: KeyPath = ()
    *above, last = _steps(heading["name"])
    for step in above:
        path = (*path, step)
        path = (*path, counts[path] - 1) if path in counts else path
    path = (*path, last)
    if heading["opened"] == "[[":
        counts[path] = counts.get(path, 0) + 1
    return (*path, counts[path] - 1) if path in counts else path


def _steps(dotted: str) -> list[str]:
    """Split a key at its dots, as TOML does."""
    here: object = tomllib.loads(f"{dotted} = 0")
    steps: list[str] = []
    while isinstance(here, dict):
        step, here = next(iter(here.items()))
        steps.append(step)
    return steps
