"""The configuration of either half, read as the half itself reads it, with where each value comes from.

Starts neither half. Secrets leave it masked.
"""

import argparse
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings

from gpu_agent.cli.grammar import Configure, parser_of
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.registry.serve import configure as configure_serve
from gpu_agent.cli.run import configure as configure_run
from gpu_agent.node import settings as agent
from gpu_agent.node.proxy import Proxy
from gpu_agent.runtime.layers import SettingsError, table_in
from gpu_agent.runtime.origins import Layer, Origin, Origins
from gpu_agent.runtime.strays import Stray, strays
from gpu_agent.runtime.toml_lines import Place
from gpu_agent.server import settings as registry


@dataclass(frozen=True, slots=True)
class Half:
    """One half of the program, as its configuration needs it."""

    configure: Configure
    """Of the command that takes the settings as options."""
    words: tuple[str, ...]
    kind: type[BaseSettings]
    default: Callable[[], Path]
    load: Callable[[Mapping[str, object], Path | None], BaseSettings]
    stand_ins: Mapping[str, object] = field(default_factory=dict)
    """For settings that must be stated: values to read the others by where they are not."""


HALVES: Mapping[str, Half] = {
    "agent": Half(
        configure_run,
        ("gpu-agent", "run"),
        agent.AgentSettings,
        lambda: agent.DEFAULT_CONFIG,
        lambda flags, config: agent.load(flags, config=config),
        {"registry_url": "wss://registry.invalid"},
    ),
    "registry": Half(
        configure_serve,
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
    lacking: str = ""
    """What must be stated and is not, as a sentence: the half cannot use the settings then."""
    strays: tuple[Stray, ...] = ()
    """Variables that are named like a setting and are none."""

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
    """Read one half's settings; raises `SettingsError`, and `Failure` where the options are none.

    Where nothing is wrong but that some must be stated, the others come all the same.
    """
    half = HALVES[arguments.half]
    config: Path | None = arguments.config
    flags = _flags(half, arguments.options)
    lacking: tuple[str, ...] = ()
    why_not = ""
    try:
        settings = half.load(flags, config)
    except SettingsError as fault:
        if not fault.lacking:
            raise
        lacking, why_not = fault.lacking, str(fault)
        settings = half.load({**flags, **{name: half.stand_ins[name] for name in lacking}}, config)
    file = config or half.default()
    origins = Origins(half.kind, (name for name, value in flags.items() if value is not None), file)
    found = (replace(one, value=None) if one.key in lacking else one for one in _settings(settings, origins))
    return Configuration(file, tuple(found), why_not, tuple(strays(half.kind, os.environ)))


def failure(fault: SettingsError) -> Failure:
    """How a command ends that cannot use the settings."""
    return Failure(str(fault), code=ExitCode.CONFIGURATION)


def _flags(half: Half, options: Sequence[str]) -> dict[str, object]:
    given = vars(parser_of(half.configure, half.words).parse_args(options))
    if given.pop("config") is not None:
        raise Failure("name the file with --config itself, not inside --with", code=ExitCode.CONFIGURATION)
    return given


def _settings(settings: BaseModel, origins: Origins, above: Place = ()) -> Iterator[Setting]:
    for name, stated in type(settings).model_fields.items():
        place, value = (*above, name), getattr(settings, name)
        if isinstance(value, BaseModel) and table_in(stated.annotation):
            yield from _settings(value, origins, place)
        else:
            yield Setting(".".join(map(str, place)), value, _origin(name, value, origins.of(place)))


def _origin(name: str, value: object, origin: Origin) -> Origin:
    """Only one value may come from none of the layers: what systemd hands the unit."""
    handed = name == "join_token_file" and value is not None and origin.layer is Layer.DEFAULT
    return Origin(Layer.CREDENTIAL) if handed else origin
