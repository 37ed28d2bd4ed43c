"""The configuration of either half, read as the half itself reads it, with where each value comes from.

Starts neither half. Secrets leave it masked.
"""

import argparse
import importlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings

from gpu_agent.cli.app import CommandModule, parser_of
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.node import settings as agent
from gpu_agent.node.proxy import Proxy
from gpu_agent.runtime.layers import SettingsError, table_in
from gpu_agent.runtime.origins import Layer, Origin, Origins
from gpu_agent.runtime.toml_lines import Place
from gpu_agent.server import settings as registry


@dataclass(frozen=True, slots=True)
class Half:
    """One half of the program, as its configuration needs it."""

    module: str
    """Of the command that takes the settings as options."""
    words: tuple[str, ...]
    kind: type[BaseSettings]
    default: Callable[[], Path]
    load: Callable[[Mapping[str, object], Path | None], BaseSettings]


HALVES: Mapping[str, Half] = {
    "agent": Half(
        "run",
        ("gpu-agent", "run"),
        agent.AgentSettings,
        lambda: agent.DEFAULT_CONFIG,
        lambda flags, config: agent.load(flags, config=config),
    ),
    "registry": Half(
        "registry_serve",
        ("gpu-agent", "registry", "serve"),
        registry.RegistrySettings,
        lambda: registry.DEFAULT_CONFIG,
        lambda flags, config: registry.load(flags, config=config),
    ),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it holds."""

    key: str
    """With a dot between a table and its key."""
    value: object
    origin: Origin

    @property
    def secret(self) -> bool:
        """Whether nobody is to be shown the value."""
        value = self.value
        return isinstance(value, SecretStr) or (isinstance(value, Proxy) and value.password is not None)


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings of one half, and the file that was looked at."""

    file: Path
    settings: tuple[Setting, ...]

    @property
    def file_is_there(self) -> bool:
        """Whether there was a file to read."""
        return self.file.is_file()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which configuration is meant."""
    parser.add_argument("half", metavar="HALF", choices=tuple(HALVES), help="agent or registry")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"
    )
    parser.add_argument(
        "--with",
        dest="options",
        metavar="OPTIONS",
        type=shlex.split,
        default=[],
        help="options that the half is started with, such as those of its unit, in quotes",
    )


def read(arguments: argparse.Namespace) -> Configuration:
    """Read one half's settings; raises `SettingsError`, and `Failure` where the options are none."""
    half = HALVES[arguments.half]
    config: Path | None = arguments.config
    flags = _flags(half, arguments.options)
    settings = half.load(flags, config)
    file = config or half.default()
    origins = Origins(half.kind, (name for name, value in flags.items() if value is not None), file)
    return Configuration(file, tuple(_settings(settings, origins)))


def failure(fault: SettingsError) -> Failure:
    """How a command ends that cannot use the settings."""
    return Failure(str(fault), code=ExitCode.CONFIGURATION)


def _flags(half: Half, options: Sequence[str]) -> dict[str, object]:
    module = cast("CommandModule", importlib.import_module(f"gpu_agent.cli.{half.module}"))
    given = vars(parser_of(module, half.words).parse_args(options))
    if given.pop("config") is not None:
        raise Failure("name the file with --config itself, not inside --with", code=ExitCode.CONFIGURATION)
    return given


def _settings(settings: BaseModel, origins: Origins, above: Place = ()) -> Iterator[Setting]:
    for name, field in type(settings).model_fields.items():
        place, value = (*above, name), getattr(settings, name)
        if isinstance(value, BaseModel) and table_in(field.annotation):
            yield from _settings(value, origins, place)
        else:
            yield Setting(".".join(map(str, place)), value, _origin(name, value, origins.of(place)))


def _origin(name: str, value: object, origin: Origin) -> Origin:
    """Only one value may come from none of the layers: what systemd hands the unit."""
    handed = name == "join_token_file" and value is not None and origin.layer is Layer.DEFAULT
    return Origin(Layer.CREDENTIAL) if handed else origin
