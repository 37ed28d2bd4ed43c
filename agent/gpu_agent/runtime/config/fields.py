"""How a setting is declared: what it means, whether it is an option, where it stands in the file.

`Setting` at a field is the only place where a setting's meaning is written. The reference in `docs/`, the
manual pages, the example files and the options of the command line are generated from it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

ADVANCED = "advanced"
"""The table of the file that holds the advanced settings. It is no part of their names or variables."""
_NUL = "\0"


@dataclass(frozen=True, slots=True)
class Setting:
    """What one setting means. Annotate the whole type of the field with it."""

    meaning: str
    """Markdown that begins in lower case and ends without a full stop."""
    kind: str | None = None
    """Type, unit and bounds, where the annotation does not show them: `URL`, `list of pins`."""
    example: str | None = None
    """A value as TOML writes it, for a setting without a default; the lines of a table for a table."""
    option: str | None = None
    """The option of the command line; None for a setting of the file and its variable alone."""
    metavar: str | None = None
    advanced: bool = False
    """Whether it stands below `[advanced]`: a setting that few machines need."""


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
    fields = kind.model_fields.items()
    return frozenset(
        name
        for name, field in fields
        if any(isinstance(one, Setting) and one.advanced for one in field.metadata)
    )


def without_advanced_table(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Move what stands below `[advanced]` to the top, where the model has it."""
    advanced = values.get(ADVANCED)
    if not isinstance(advanced, Mapping) or not advanced_names(kind):
        return dict(values)
    return {**{key: value for key, value in values.items() if key != ADVANCED}, **advanced}


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
