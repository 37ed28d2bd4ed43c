"""The settings of a component by what their `Setting` says: options, advanced ones, reloadable ones."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from gpu_agent.runtime.address import Address
from gpu_agent.wire.settings import Setting

ADVANCED = "advanced"
"""The table of the file that holds the advanced settings. It is no part of their names or variables."""
_NUL = "\0"


def setting_of(field: FieldInfo) -> Setting:
    """Return what is declared at a field; raises `LookupError` for a field without a `Setting`."""
    for one in field.metadata:
        if isinstance(one, Setting):
            return one
    raise LookupError(f"{field!r} has no Setting")


def options_of(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, Setting]]:
    """Yield the settings that are options too, by name."""
    for name, field in kind.model_fields.items():
        setting = setting_of(field)
        if setting.option is not None:
            yield name, field, setting


def advanced_names(kind: type[BaseModel]) -> frozenset[str]:
    """Name the settings that stand below `[advanced]`."""
    return _names_where(kind, lambda setting: setting.advanced)


def reloadable_names(kind: type[BaseModel]) -> frozenset[str]:
    """Name the settings that a running program applies when it reads them again."""
    return _names_where(kind, lambda setting: setting.reload)


def without_advanced_table(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Move what stands below `[advanced]` to the top, where the model has it."""
    advanced = values.get(ADVANCED)
    if not isinstance(advanced, Mapping) or not advanced_names(kind):
        return dict(values)
    return {**{key: value for key, value in values.items() if key != ADVANCED}, **advanced}


def other_names(kind: type[BaseModel]) -> dict[str, str]:
    """Map the other names of settings to the first ones."""
    return {
        one.other_name: name
        for name, field in kind.model_fields.items()
        for one in field.metadata
        if isinstance(one, Setting) and one.other_name is not None
    }


def by_first_name(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Move what stands below another name of a setting to its first one."""
    first = other_names(kind)
    return {first.get(name, name): value for name, value in values.items()}


def _names_where(kind: type[BaseModel], holds: Callable[[Setting], bool]) -> frozenset[str]:
    return frozenset(
        name
        for name, field in kind.model_fields.items()
        if any(isinstance(one, Setting) and holds(one) for one in field.metadata)
    )


def _expanded(path: Path) -> Path:
    """Read `~` as the user's home, where there is one."""
    if _NUL in str(path):
        raise ValueError("a path holds no NUL character; write it without")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("it begins with ~, but that user has no home here; write the whole path") from None


ConfigPath = Annotated[Path, AfterValidator(_expanded)]
"""A path as an owner writes it into a setting: `~` is the user's home."""


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


Listen = Annotated[Address, BeforeValidator(_address)]
"""An address to listen at, written HOST:PORT."""
