"""Settings in layers: defaults ← TOML file ← environment ← options, and their faults as sentences.

Both components read theirs this way. A fault names the file's line or the variable, and an unknown key comes with
the nearest known one. What else a fault means, the component's own settings module says.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableError

from gpu_agent.runtime.config.sources import DEFAULT, SettingSources, unknown_variables

# Settings in layers: defaults ← a TOML file ← environment ← flags, and their faults as sentences.
#
# Both programs read theirs this way. A fault names the file's line or the variable that has it, and a key
# that does not exist the nearest one that does. Knows no setting by name: what else a fault means is said
# by whoever owns the settings. Reads once and changes nothing.


_Settings = TypeVar("_Settings", bound=BaseSettings)
_LONGEST_SHOWN = 60


class SettingsError(Exception):
    """What the owner wrote cannot be used: a sentence for each fault, with the next step."""

    def __init__(self, sentences: str, lacking: tuple[str, ...] = ()) -> None:
        super().__init__(sentences)
        self.lacking = lacking
        """The settings that must be stated and are not, where that is all that is wrong."""


def load_settings(
    kind: type[_Settings],
    flags: Mapping[str, object],
    *,
    default: Path,
    config: Path | None,
    sentence: Callable[[ErrorDetails], str | None],
) -> _Settings:
    """Read all layers; raises `SettingsError`. Flags that were not given are left out or None.

    Without `config` the file at `default` is read if it is there; a named one must be there.
    `sentence` has the owner's own words for a fault, or None for the usual ones.
    """
    path = default if config is None else config
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        if config is not None and not config.is_file():
            raise SettingsError(f"there is no file {config}; name an existing one with --config")
        return _layered(kind, path)(**given)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except UnreadableError as error:  # a variable that should hold JSON
        raise SettingsError(f"{error}: write it as JSON") from None
    except ValidationError as error:
        origins, errors = SettingSources(kind, given, path), error.errors(include_url=False)
        faults = [f"{_place(origins, one)}{sentence(one) or _usual(kind, one)}" for one in errors]
        lacking = tuple(
            setting_name(one) for one in errors if one["type"] == "missing" and len(one["loc"]) == 1
        )
        if lacking:  # perhaps it was meant to be stated
            faults += map(str, unknown_variables(kind, os.environ))
        raise SettingsError("\n".join(faults), lacking if len(lacking) == len(errors) else ()) from None
    except (ValueError, RecursionError) as error:  # not only TOML's own: a number may have too many digits
        raise SettingsError(f"{path} is not valid TOML (which is UTF-8 text): {error}") from None


def fault_text(error: ErrorDetails) -> str:
    """What is wrong, in the words of whoever found it."""
    return error["msg"].removeprefix("Value error, ")


def setting_name(error: ErrorDetails) -> str:
    """The setting that has a fault, with dots between a table and its key; empty for all of them."""
    return ".".join(str(step) for step in error["loc"])


def _place(origins: SettingSources, error: ErrorDetails) -> str:
    origin = origins.nearest(error["loc"])
    return "" if origin is DEFAULT or not origin.stands else f"{origin}: "


def _usual(kind: type[BaseModel], error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown_key(kind, _holder(kind, error), str(error["loc"][-1]))
    name = setting_name(error)
    return f"{name}: {fault_text(error)}, got {_shown(error['input'])}" if name else fault_text(error)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def _unknown_key(kind: type[BaseModel], holder: type[BaseModel], key: str) -> str:
    elsewhere = _where_it_belongs(kind, key)
    if elsewhere is not None and key not in holder.model_fields:
        return f"{_shown(key)} is no setting there; put it {elsewhere}"
    nearest = difflib.get_close_matches(key, holder.model_fields, 1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(holder.model_fields)}"
    return f"{_shown(key)} is no setting; {hint}"


def _where_it_belongs(kind: type[BaseModel], key: str) -> str | None:
    """Where a key is one, that stands in the wrong table: TOML goes on with a table to the next one."""
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


def _layered(kind: type[_Settings], path: Path) -> type[_Settings]:
    """The same settings, that also look into a file.

    Variables that no setting is named after are ignored, and told by `strays`: Kubernetes makes some of
    its own (`GPU_AGENT_PORT`) for a service of our name.
    """

    class Layered(kind):  # type: ignore[valid-type, misc]  # a class made for one call
        model_config = SettingsConfigDict(toml_file=path)

        @classmethod
        def settings_customise_sources(  # noqa: PLR0917 - the signature is pydantic's
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Flags before environment before file."""
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    return Layered


# A path as an owner writes it into a setting: `~` is the user's home.
#
# Looks at nothing on a disk. Refuses what no path can be; why comes as a `ValueError` with the next step.


_NUL = "\0"


def _expanded(path: Path) -> Path:
    """Read `~` as the user's home, where there is one."""
    if _NUL in str(path):
        raise ValueError("a path holds no NUL character; write it without")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("it begins with ~, but that user has no home here; write the whole path") from None


ConfigPath = Annotated[Path, AfterValidator(_expanded)]
"""A place on the disk, a file's or a folder's."""
