"""`gpu-agent config`: the settings of agent or registry, checked, or shown with where each comes from.

They are read as the component itself reads them, and neither is started. Secrets are masked.
"""

import json
import os
import shlex
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings

from gpu_agent.cli.agent.run import declare as declare_run
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import Commands, Declaration, argument, option, values_of
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import Piece, line, print_lines, terminal_columns
from gpu_agent.cli.registry.serve import declare_serve
from gpu_agent.node import settings as agent
from gpu_agent.runtime.config.load import SettingsError, table_model
from gpu_agent.runtime.config.sources import (
    KeyPath,
    Layer,
    SettingSource,
    SettingSources,
    UnknownVariable,
    unknown_variables,
)
from gpu_agent.runtime.logs import REDACTED, is_secret_name, redact_secrets
from gpu_agent.runtime.proxy import Proxy
from gpu_agent.server import settings as registry
from gpu_agent.server.notify.access import unusable

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_COLUMNS = (Column(head="SETTING"), Column(head="VALUE", wraps=True), Column(head="FROM", wraps=True))


@dataclass(frozen=True, slots=True)
class Component:
    """A component of the program, as its configuration needs it."""

    declare: Callable[[], Declaration]
    """Declares the command that takes the settings as options."""
    words: tuple[str, ...]
    kind: type[BaseSettings]
    default: Callable[[], Path]
    load: Callable[[Mapping[str, object], Path | None], BaseSettings]
    placeholders: Mapping[str, object] = field(default_factory=dict)
    """Values of required settings, with which the others are read where those are missing."""


COMPONENTS: Mapping[str, Component] = {
    "agent": Component(
        declare_run,
        ("gpu-agent", "run"),
        agent.AgentSettings,
        lambda: agent.DEFAULT_CONFIG,
        lambda flags, config: agent.load(flags, config=config),
        {"registry_url": "wss://registry.invalid"},
    ),
    "registry": Component(
        declare_serve,
        ("gpu-agent", "registry", "serve"),
        registry.RegistrySettings,
        lambda: registry.DEFAULT_CONFIG,
        lambda flags, config: registry.load(flags, config=config),
    ),
}


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """One setting in force."""

    key: str
    """Its name, with a dot between a table and its key."""
    value: object
    origin: SettingSource

    @property
    def secret(self) -> bool:
        """Whether the value must not be shown."""
        value = self.value
        return isinstance(value, SecretStr) or (isinstance(value, Proxy) and value.password is not None)


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings of one component, and the file that was read."""

    file: Path
    settings: tuple[ShownSetting, ...]
    lacking: str = ""
    """The required settings that are missing, as a sentence; without them the component does not start."""
    unknown: tuple[UnknownVariable, ...] = ()
    """Variables with the prefix of settings that name no setting."""

    @property
    def file_is_there(self) -> bool:
        """Whether there is a file to read."""
        return self.file.is_file()


def declare_check() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Say whether the settings of the agent or the registry can be used: their faults, each "
        "with the line or the variable that has it, and for an unknown key the nearest that there is. "
        "Nothing is started or reached: `gpu-agent doctor` checks what the agent's settings name.",
        example="gpu-agent config check agent",
        exits={
            ExitCode.OK: "they can be used, perhaps with warnings",
            ExitCode.CONFIGURATION: "they cannot; it says why",
        },
        asks=False,
        params=[*configuration_params(), option("--json", help="print one object, for programs", flag=True)],
    )


def run_check(arguments: Arguments) -> int:
    """Read and judge."""
    try:
        configuration = read_configuration(arguments)
    except SettingsError as fault:
        return _report_faults(fault, as_json=arguments.json)
    if configuration.lacking:
        return _report_faults(SettingsError(configuration.lacking), as_json=arguments.json)
    warnings = list(_warnings(configuration))
    if arguments.json:
        print(json.dumps({"usable": True, "faults": [], "warnings": warnings}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([_summary(arguments.component, configuration), *warnings]))
    return ExitCode.OK


def declare_show() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show every setting of the agent or the registry as it holds, and where its value comes "
        "from: a "
        "default, a line of the file, a variable, an option, or a credential that systemd gives to the unit. "
        "Secrets are masked, and a required setting that is missing is shown as none. It reads the variables "
        "of your shell, not those of a running service; give the options of its unit with --with.",
        example="gpu-agent config show agent --changed",
        exits={
            ExitCode.OK: "shown",
            ExitCode.CONFIGURATION: "the settings cannot be used, or one is lacking; it says which",
        },
        asks=False,
        params=[
            *configuration_params(),
            option("--changed", help="leave out what holds by default", flag=True),
            option("--json", help="print one object, for programs", flag=True),
        ],
    )


def run_show(arguments: Arguments) -> int:
    """Read and print."""
    try:
        configuration = read_configuration(arguments)
    except SettingsError as fault:
        raise settings_failure(fault) from None
    settings = [
        one for one in configuration.settings if not (arguments.changed and one.origin.layer is Layer.DEFAULT)
    ]
    if arguments.json:
        print(json.dumps(_settings_document(configuration, settings), indent=2, ensure_ascii=False))
    elif settings:
        print_lines(
            render_table(Table(_COLUMNS, [_setting_row(one) for one in settings]), terminal_columns())
        )
    else:
        print("Nothing is changed: every setting has its default. Without --changed all are shown.")
    if configuration.lacking:
        print_stderr(configuration.lacking)
        return ExitCode.CONFIGURATION
    return ExitCode.OK


def configuration_params() -> list[click.Parameter]:
    """Return the component and where its settings are."""
    return [
        argument("component", metavar="COMPONENT", choices=tuple(COMPONENTS), help="agent or registry"),
        option("--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"),
        option(
            "--with",
            dest="options",
            metavar="OPTIONS",
            type=shlex.split,
            default=[],
            help="options that the component is started with, such as those of its unit, in quotes",
        ),
    ]


def read_configuration(arguments: Arguments) -> Configuration:
    """Read one component's settings; raises `SettingsError`, and `Failure` for wrong options.

    Where only required settings are missing, the others are returned all the same.
    """
    component = COMPONENTS[arguments.component]
    config: Path | None = arguments.config
    flags = _parse_options(component, arguments.options)
    lacking: tuple[str, ...] = ()
    why_not = ""
    try:
        settings = component.load(flags, config)
    except SettingsError as fault:
        if not fault.lacking:
            raise
        lacking, why_not = fault.lacking, str(fault)
        settings = component.load(
            {**flags, **{name: component.placeholders[name] for name in lacking}}, config
        )
    file = config or component.default()
    origins = SettingSources(
        component.kind, (name for name, value in flags.items() if value is not None), file
    )
    found = (
        replace(one, value=None) if one.key in lacking else one for one in _settings_of(settings, origins)
    )
    return Configuration(file, tuple(found), why_not, tuple(unknown_variables(component.kind, os.environ)))


def settings_failure(fault: SettingsError) -> Failure:
    """Return the failure of a command that cannot use the settings."""
    return Failure(str(fault), code=ExitCode.CONFIGURATION)


def json_value(value: object) -> object:
    """Convert a value for JSON; a type that JSON lacks becomes a string. Secrets are masked."""
    match value:
        case None | bool() | int() | float():
            return value
        case SecretStr():
            return REDACTED
        case BaseModel():
            return json_value(value.model_dump(exclude_none=True, exclude_defaults=True))
        case Mapping():
            return {str(name): json_value(one) for name, one in value.items()}
        case tuple() | list() | frozenset():
            return [json_value(one) for one in value]
        case _:
            return redact_secrets(str(value))


def toml_value(value: object) -> str:
    """Return a value as TOML writes it; for none, which TOML lacks, the word. Secrets are masked."""
    return "none" if value is None else _toml(json_value(value))


def _toml(value: object) -> str:
    match value:
        case Mapping():
            inside = ", ".join(f"{_key(name)} = {_toml(one)}" for name, one in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case float():
            return f"{value:g}" if value.is_integer() else repr(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name and set(name) <= _BARE else json.dumps(name, ensure_ascii=False)


def _parse_options(component: Component, options: Sequence[str]) -> dict[str, object]:
    given = values_of(component.declare(), component.words, options)
    if given.pop("config") is not None:
        raise Failure("name the file with --config itself, not inside --with", code=ExitCode.CONFIGURATION)
    return given


def _settings_of(settings: BaseModel, origins: SettingSources, above: KeyPath = ()) -> Iterator[ShownSetting]:
    for name, field_info in type(settings).model_fields.items():
        path, value = (*above, name), getattr(settings, name)
        if isinstance(value, BaseModel) and table_model(field_info.annotation):
            yield from _settings_of(value, origins, path)
        else:
            yield ShownSetting(".".join(map(str, path)), value, _origin(name, value, origins.of(path)))


def _origin(name: str, value: object, origin: SettingSource) -> SettingSource:
    """Only one value may come from none of the layers: the credential that systemd gives to the unit."""
    credential = name == "join_token_file" and value is not None and origin.layer is Layer.DEFAULT
    return SettingSource(Layer.CREDENTIAL) if credential else origin


def _report_faults(fault: SettingsError, *, as_json: bool) -> int:
    if not as_json:
        raise settings_failure(fault)
    faults = redact_secrets(str(fault)).splitlines()
    print(json.dumps({"usable": False, "faults": faults, "warnings": []}, indent=2, ensure_ascii=False))
    return ExitCode.CONFIGURATION


def _summary(component: str, configuration: Configuration) -> str:
    counted = Counter(one.origin.layer for one in configuration.settings)
    stated = [
        f"{counted[layer]} by {word}"
        for layer, word in {
            Layer.FILE: "the file",
            Layer.VARIABLE: "variables",
            Layer.OPTION: "options",
            Layer.CREDENTIAL: "systemd's credential",
        }.items()
        if counted[layer]
    ]
    there = "" if configuration.file_is_there else " (there is no such file)"
    origins = f"set {', '.join(stated)}; the rest by default" if stated else "all by default"
    return f"the {component} can use these settings: {configuration.file}{there}, {origins}"


def _warnings(configuration: Configuration) -> Iterator[str]:
    """Find what works and deserves a warning: secrets that everybody may read, limits without effect."""
    yield from (f"warning: {one}" for one in configuration.unknown)
    yield from _limits_without_effect(configuration)
    yield from _exposed_secrets(configuration)
    yield from _hook_that_fails(configuration)
    yield from _receivers_that_fail(configuration)
    mode = stat.S_IMODE(configuration.file.stat().st_mode) if configuration.file_is_there else 0
    if mode & stat.S_IWOTH:
        yield (
            f"warning: {configuration.file}: everybody on this machine may write the settings (mode "
            f"{mode:04o}), and so send its nodes and tokens elsewhere; run `chmod o-w {configuration.file}`"
        )
    for one in configuration.settings:
        if one.secret and one.origin.layer is Layer.FILE and mode & stat.S_IROTH:
            yield (
                f"warning: {one.origin}: {one.key} is a secret, and everybody on this machine may read "
                f"the file (mode {mode:04o}); keep it in a file of its own that the service alone may "
                "read, and have it replaced"
            )


def _exposed_secrets(configuration: Configuration) -> Iterator[str]:
    """Warn of values that look like a secret and that a node publishes."""
    for one in configuration.settings:
        names = one.value if one.key == "labels" and isinstance(one.value, dict) else {}
        for name in filter(is_secret_name, names):
            yield (
                f"warning: {one.origin}: the label {name!r} looks like a secret, and the registry shows "
                "labels to every operator; remove it if it is one"
            )
        if one.key == "endpoint" and isinstance(one.value, str) and redact_secrets(one.value) != one.value:
            yield (
                f"warning: {one.origin}: endpoint holds a password, and the registry shows it to every "
                "operator; remove it"
            )


def _hook_that_fails(configuration: Configuration) -> Iterator[str]:
    """Warn of a hook that this user cannot run: the agent reports it as failed each time."""
    for one in configuration.settings:
        if one.key != "checks.hook" or not isinstance(one.value, tuple) or not one.value:
            continue
        program = str(one.value[0])
        if shutil.which(program) is not None:
            continue
        if "/" not in program:
            why = f"no folder in PATH has {program}; install it, or write its whole path"
        elif Path(program).is_file():
            why = f"{program} may not be executed; run `chmod +x {shlex.quote(program)}`"
        else:
            why = f"there is no file {program}; put it there, or name another"
        yield f"warning: {one.origin}: checks.hook fails: {why}"


def _receivers_that_fail(configuration: Configuration) -> Iterator[str]:
    """Warn of receivers of alarms that get nothing, as `registry notify test` does."""
    by_key = {one.key: one for one in configuration.settings}
    notify, plaintext = by_key.get("notify"), by_key.get("insecure_plaintext")
    for receiver in notify.value if notify is not None and isinstance(notify.value, tuple) else ():
        problem = unusable(receiver, plaintext=plaintext is not None and plaintext.value is True)
        if notify is not None and problem is not None:
            yield f"warning: {notify.origin}: no alarms reach {receiver.name}: {problem}"


def _limits_without_effect(configuration: Configuration) -> Iterator[str]:
    accepted = any(one.key == "accept_public_jobs" and one.value for one in configuration.settings)
    limits = [
        one
        for one in configuration.settings
        if one.key.startswith("public_jobs.") and one.origin.layer is not Layer.DEFAULT
    ]
    if limits and not accepted:
        yield (
            f"warning: {limits[0].origin}: {limits[0].key} limits nothing, since no public jobs are let in; "
            "set accept_public_jobs = true if they may come"
        )


def _setting_row(one: ShownSetting) -> Row:
    style = "dim" if one.origin.layer is Layer.DEFAULT else ""
    words = (one.key, toml_value(one.value), str(one.origin))
    return Row([line(Piece(word, style)) for word in words])


def _settings_document(configuration: Configuration, settings: list[ShownSetting]) -> dict[str, object]:
    return {
        "file": str(configuration.file),
        "file_is_there": configuration.file_is_there,
        "lacking": configuration.lacking or None,
        "settings": [
            {
                "key": one.key,
                "value": json_value(one.value),
                "layer": one.origin.layer.value,
                "line": one.origin.line,
                "variable": one.origin.variable,
            }
            for one in settings
        ],
    }


COMMANDS: Commands = {
    "check": (declare_check, run_check),
    "show": (declare_show, run_show),
}
