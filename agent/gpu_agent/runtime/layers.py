"""Settings in layers: defaults ← a TOML file ← environment ← flags, and their faults as sentences.

Both programs read theirs this way. Knows no setting by name; what a fault means is said by
whoever owns the settings. Reads once and changes nothing.
"""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableError

_Settings = TypeVar("_Settings", bound=BaseSettings)


class SettingsError(Exception):
    """What the owner wrote cannot be used: a sentence for each fault, with the next step."""


def read(
    kind: type[_Settings],
    flags: Mapping[str, object],
    *,
    default: Path,
    config: Path | None,
    sentence: Callable[[ErrorDetails, Path], str],
) -> _Settings:
    """Read all layers; raises `SettingsError`. Flags that were not given are left out or None.

    Without `config` the file at `default` is read if it is there; a named one must be there.
    """
    path = default if config is None else config
    if config is not None and not config.is_file():
        raise SettingsError(f"there is no file {config}; name an existing one with --config")
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        return _layered(kind, path)(**given)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path} is not valid TOML (which is UTF-8 text): {error}") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    except UnreadableError as error:  # a variable that should hold JSON
        raise SettingsError(f"{error}: write it as JSON") from None
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise SettingsError("\n".join(sentence(one, path) for one in faults)) from None


def _layered(kind: type[_Settings], path: Path) -> type[_Settings]:
    """The same settings, that also look into a file.

    Variables that no setting is named after are ignored: Kubernetes makes some of its own
    (`GPU_AGENT_PORT`) for a service of our name.
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
