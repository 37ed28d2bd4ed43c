"""Settings in layers: defaults ← TOML file ← environment ← options, and their faults as sentences.

Both components read theirs this way. A fault names the file's line or the variable, and an unknown key comes
with the nearest known one. What else a fault means, the component's own settings module says.
"""

import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource
from pydantic_settings import SettingsError as UnreadableError

from gpu_agent.runtime.config.fields import (
    ADVANCED,
    advanced_names,
    by_first_name,
    other_names,
    without_advanced_table,
)
from gpu_agent.runtime.config.sources import (
    DEFAULT,
    SettingSources,
    first_repetition,
    other_variables,
    text_of,
    unknown_variables,
    variable_name,
)

_Settings = TypeVar("_Settings", bound=BaseSettings)
_Fault = tuple[int, str]
"""The line of the file, by which faults are sorted, and a sentence."""
_NO_LINE, _LACKING = sys.maxsize - 1, sys.maxsize
_MAX_SHOWN = 60
_MOST_NAMES = 12
"""Names of settings in one message."""
_EXPECTED = {
    "dict_type": 'must be a table such as {key} = {{ zone = "a" }}',
    "model_type": "must be a table: write its settings below [{key}]",
    "model_attributes_type": "must be a table: write its settings below [{key}]",
    "list_type": 'must be a list such as {key} = ["a", "b"]',
    "tuple_type": 'must be a list such as {key} = ["a", "b"]',
    "string_type": 'must be a text in quotes such as {key} = "a"',
    "missing": "is missing",
}
"""What a value of another type must be, by the validator's name of the fault."""


class SettingsError(Exception):
    """The settings cannot be used: a sentence for each fault, with the next step."""

    def __init__(self, sentences: str, lacking: tuple[str, ...] = ()) -> None:
        super().__init__(sentences)
        self.lacking = lacking
        """The required settings that no layer states, where nothing else is wrong."""


def load_settings(
    kind: type[_Settings],
    options: Mapping[str, object],
    *,
    default: Path,
    config: Path | None,
    sentence: Callable[[ErrorDetails], str | None],
) -> _Settings:
    """Read all layers; raises `SettingsError`. Options that were not given are left out or None.

    Without `config` the file at `default` is read if it exists; a named one must exist.
    `sentence` has the component's own words for a fault, or None for the usual ones.
    """
    path = default if config is None else config
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        if config is not None and not config.is_file():
            raise SettingsError(f"there is no file {config}; name an existing one with --config")
        written = _read_file(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except (ValueError, RecursionError) as error:  # not only TOML's own: a number may have too many digits
        twice = first_repetition(text_of(path))
        if twice is not None:
            name, again, first = twice
            fix = (
                f"put all its keys below line {first}" if name.startswith("[") else "leave one of the two out"
            )
            raise SettingsError(f"{path}:{again}: {name} is already set in line {first}; {fix}") from None
        raise SettingsError(f"{path} is not valid TOML (which is UTF-8 text): {error}") from None
    sources = SettingSources(kind, given, path)
    faults = [(_NO_LINE, one) for one in _named_twice(kind, written, path)]
    faults += _misplaced(kind, written, sources)
    lacking: tuple[str, ...] = ()
    try:
        settings = _with_file(kind, by_first_name(kind, without_advanced_table(kind, written)))(**given)
    except UnreadableError as error:  # a variable that should hold JSON
        raise SettingsError(f"{error}: write it as JSON") from None
    except ValidationError as error:
        errors = error.errors(include_url=False)
        faults += [_placed(sources, one, sentence(one) or _usual(kind, one)) for one in errors]
        lacking = tuple(
            setting_name(one) for one in errors if one["type"] == "missing" and len(one["loc"]) == 1
        )
        if len(lacking) < len(faults):
            raise SettingsError(_listed(faults, kind, lacking)) from None
    else:
        if not faults:
            return settings
    raise SettingsError(_listed(faults, kind, lacking), lacking)


def _listed(faults: list[_Fault], kind: type[BaseSettings], lacking: tuple[str, ...]) -> str:
    """List faults by their lines, a setting that is lacking last."""
    return "\n".join([*[fault for _, fault in sorted(faults, key=_line_of)], *_perhaps_meant(kind, lacking)])


def _line_of(fault: _Fault) -> int:
    return fault[0]


def fault_text(error: ErrorDetails) -> str:
    """What is wrong, in plain words, or else in those of the validator that found it."""
    expected = _EXPECTED.get(error["type"])
    if expected is not None and error["loc"]:
        return expected.format(key=error["loc"][-1])
    said = error["msg"].removeprefix("Value error, ")
    return re.sub(r"^Input should (?=be|have)", "must ", said)


def setting_name(error: ErrorDetails) -> str:
    """The setting that has a fault, with dots between a table and its key; empty for all of them."""
    return ".".join(str(step) for step in error["loc"])


def _placed(sources: SettingSources, error: ErrorDetails, fault: str) -> _Fault:
    """Put the place of a fault before it."""
    source = sources.nearest(error["loc"])
    if source is DEFAULT or not source.has_location:
        return (_LACKING if error["type"] == "missing" else _NO_LINE, fault)
    return (source.line or _NO_LINE, f"{source}: {fault}")


def _usual(kind: type[BaseModel], error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown_key(kind, _holder(kind, error), str(error["loc"][-1]))
    name = setting_name(error)
    fault = fault_text(error)
    if error["type"] == "missing":
        return f"{name} {fault}"
    return f"{name}: {fault.removesuffix('.')}, got {_shown(error['input'])}" if name else fault


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def _unknown_key(kind: type[BaseModel], holder: type[BaseModel], key: str) -> str:
    elsewhere = _where_it_belongs(kind, key)
    if elsewhere is not None and key not in holder.model_fields:
        return f"{_shown(key)} is no setting there; put it {elsewhere}"
    return f"{_shown(key)} is no setting; {_hint(key, list(holder.model_fields))}"


def _hint(key: str, names: Sequence[str]) -> str:
    import difflib  # noqa: PLC0415 - for a mistake alone

    if nearest := difflib.get_close_matches(key, names, 1):
        return f"did you mean {nearest[0]!r}?"
    if len(names) <= _MOST_NAMES:
        return f"there are: {', '.join(names)}"
    words = set(key.split("_"))
    alike = [name for name in names if words & set(name.split("_"))][:_MOST_NAMES]
    listed = "`gpu-agent config show` lists all"
    return f"alike are: {', '.join(alike)}; {listed}" if alike else listed


def _where_it_belongs(kind: type[BaseModel], key: str) -> str | None:
    """Where a key belongs that stands in the wrong table: in TOML a table lasts until the next one."""
    if key in advanced_names(kind):
        return f"below [{ADVANCED}]"
    if key in kind.model_fields:
        return "above the first table of the file"
    for name, field in kind.model_fields.items():
        table = table_model(field.annotation)
        if table is not None and key in table.model_fields:
            return f"below [{name}]"
    return None


def _holder(kind: type[BaseModel], error: ErrorDetails) -> type[BaseModel]:
    """The settings, or the table of them, that refused a key."""
    for step in error["loc"][:-1]:
        field = kind.model_fields.get(str(step))
        kind = kind if field is None else table_model(field.annotation) or kind
    return kind


def table_model(annotation: object) -> type[BaseModel] | None:
    """The table that a setting's type holds, alone, as an option or many times; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(table_model, get_args(annotation))), None)


def _perhaps_meant(kind: type[BaseSettings], lacking: tuple[str, ...]) -> list[str]:
    """The variables that name no setting: one may have been meant as a missing setting."""
    return [str(variable) for variable in unknown_variables(kind, os.environ)] if lacking else []


def _named_twice(kind: type[BaseSettings], written: Mapping[str, Any], file: Path) -> Iterator[str]:
    """Say which settings one layer states by both of their names."""
    prefix, there = str(kind.model_config.get("env_prefix", "")), {name.upper() for name in os.environ}
    for other, first in other_names(kind).items():
        variables = [variable_name(prefix, (name,)) for name in (first, other)]
        if {first, other} <= written.keys():
            yield f"{file}: {first} and {other} are names of one setting, and both are set; leave one out"
        if there.issuperset(variables):
            yield f"the variables {' and '.join(variables)} set the same; unset one of them"


def _misplaced(
    kind: type[BaseModel], written: Mapping[str, Any], sources: SettingSources
) -> Iterator[_Fault]:
    """Say which settings stand above the tables and belong below `[advanced]`, or the other way round."""
    advanced, table = advanced_names(kind), written.get(ADVANCED)
    below = table if isinstance(table, Mapping) else {}
    for key, where in [(key, f"below [{ADVANCED}]") for key in written if key in advanced] + [
        (key, "above the first table of the file")
        for key in below
        if key in kind.model_fields.keys() - advanced
    ]:
        source = sources.of((key,))
        yield source.line or _NO_LINE, f"{source}: {key!r} is no setting there; put it {where}"


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return tomllib.load(file)


def _with_file(kind: type[_Settings], written: Mapping[str, Any]) -> type[_Settings]:
    """The same settings, that also take the file's values.

    Variables that name no setting are ignored; `unknown_variables` reports them. Kubernetes sets some
    (`GPU_AGENT_PORT`) for a service of our name.
    """

    class WithFile(kind):  # type: ignore[valid-type, misc]  # a class made for one call
        @classmethod
        def settings_customise_sources(  # noqa: PLR0917 - the signature is pydantic's
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Options before environment before file."""
            variables = {first: os.environ[name] for first, name in other_variables(kind).items()}
            renamed = InitSettingsSource(settings_cls, variables)
            return init_settings, env_settings, renamed, InitSettingsSource(settings_cls, dict(written))

    return WithFile
