"""`gpu-agent service`: make agent or registry a systemd service after a pip install, or look at it."""

import importlib.util
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.config import COMPONENTS as CONFIGURATIONS
from gpu_agent.cli.declaration import Commands, Declaration, argument, option
from gpu_agent.cli.output.text import Line, Piece, line, print_json, print_lines
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.logs import redact_secrets
from gpu_agent.runtime.systemd.install import (
    Machine,
    Plan,
    Program,
    RefusedError,
    Run,
    Step,
    StepError,
    find_user,
    first_inaccessible,
    plan_install,
    plan_uninstall,
    run_program,
    run_steps,
)
from gpu_agent.runtime.systemd.status import InstalledBy, ServiceStatus, end_in_words, service_status
from gpu_agent.runtime.systemd.units import (
    COMPONENTS,
    Component,
    UnwritablePathError,
    shipped_units,
    unit_files,
)
from gpu_agent.version import __version__

_ROOT = Path("/")
_OF_BOTH = ("gpu_agent", "pydantic", "websockets", "psutil", "pynvml")
_OF_THE_REGISTRY = ("fastapi", "uvicorn", "httptools", "jinja2", "prometheus_client", "msgspec", "uvloop")


def component_argument() -> list[click.Parameter]:
    """Return the component that the arguments name."""
    return [
        argument(
            "component",
            metavar="COMPONENT",
            default="agent",
            choices=tuple(COMPONENTS),
            help="agent (default) or registry",
            optional=True,
        )
    ]


def this_machine() -> Machine:
    """Return this machine, and the user who runs the command."""
    uid = os.geteuid() if hasattr(os, "geteuid") else -1
    return Machine(_ROOT, shipped_units(), uid)


def program(component: str) -> Program:
    """Return this program, as a service starts it; raises `Failure` where it has no command of its own."""
    path = program_path()
    if not path.is_file():
        raise Failure(
            f"there is no {path}: install this program with pip, which makes that command",
            ExitCode.CONFIGURATION,
        )
    names = _OF_BOTH + (_OF_THE_REGISTRY if component == "registry" else ())
    parts = [Path(sys.executable), Path(os.__file__)]
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise Failure(
                f"the {component} needs the package {name}, which is not installed here: "
                f"`{path.with_name('pip')} install 'gpu-agent[registry]'`",
                ExitCode.CONFIGURATION,
            )
        parts.append(Path(found.origin))
    return Program(path, __version__, tuple(parts))


def program_path() -> Path:
    """Return where pip installs this program's command."""
    return Path(sysconfig.get_path("scripts")) / "gpu-agent"


def refused(error: RefusedError | UnwritablePathError) -> Failure:
    """Return the failure of a command that this machine cannot run."""
    return Failure(str(error), ExitCode.CONFIGURATION)


def declare_install() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Make the agent, or the registry, a service of this machine, as the packages do: the systemd "
        "unit "
        "with this environment's program, the user it runs as, and settings to begin with where there are "
        "none. Settings that are there stay. Run it again after each upgrade by pip: it brings the unit up "
        "to date, and a service that runs goes on in the new version.\n\n"
        "Refused, with nothing changed: without systemd, for other users than root, where a package has "
        "installed the service, and where the service's user could not read this environment.",
        example="gpu-agent service install --dry-run",
        exits={
            ExitCode.OK: "it is a service of this machine",
            ExitCode.FAILED: "a step failed; what was done before it stays: fix that, run it again",
            ExitCode.CONFIGURATION: "refused, or with --now not started, as its settings are not ready",
        },
        asks=False,
        params=[
            *component_argument(),
            option("--now", help="start it too, now and at every boot", flag=True),
            option("--dry-run", help="only say what would be done", flag=True),
        ],
    )


def run_install(arguments: Arguments) -> int:
    """Plan the steps and run them."""
    component = COMPONENTS[arguments.component]
    here = this_machine()
    try:
        here.require_systemd()
        here.refuse_beside_package(component)
        own = program(component.name)
        if not arguments.dry_run:
            here.require_root(f"{own.path} service install")
        plan = plan_install(component, own, place=here, user=find_user(component.service))
    except RefusedError as error:
        raise refused(error) from None
    steps = (*plan.steps, *_restart_steps(component, plan))
    if arguments.dry_run:
        print("\n".join(f"would {step}" for step in steps))
        return ExitCode.OK
    _carry_out(steps)
    print(_summary(component, own, plan))
    return _start(component, plan) if arguments.now else _print_next_steps(component, plan)


def _carry_out(steps: tuple[Step, ...]) -> None:
    try:
        run_steps(steps, lambda step: print(f"done: {step}"))
    except StepError as error:
        raise Failure(f"{error}. Fix that and run this again: what is done already stays") from None


def _restart_steps(component: Component, plan: Plan) -> Iterator[Step]:
    """A service that runs restarts in the new version; one that does not is not started."""
    if plan.changed:
        yield Run(("systemctl", "try-restart", component.unit))


def _summary(component: Component, own: Program, plan: Plan) -> str:
    done = "is now" if plan.changed else "was already, and is,"
    return (
        f"The {component.name} of version {own.version} {done} the service {component.service}, "
        f"run from {own.path}."
    )


def _start(component: Component, plan: Plan) -> int:
    why_not = _why_not_ready(component, plan)
    if why_not is not None:
        raise Failure(
            f"it is installed, and not started: {why_not}\n"
            f"Then: `systemctl enable --now {component.service}`",
            ExitCode.CONFIGURATION,
        )
    _carry_out((Run(("systemctl", "enable", "--now", component.unit)),))
    print(f"Look at it with `gpu-agent service status {component.name}`.")
    return ExitCode.OK


def _print_next_steps(component: Component, plan: Plan) -> int:
    if run_program(("systemctl", "is-active", "--quiet", component.unit))[0] == 0:
        print(f"It runs. Look at it with `gpu-agent service status {component.name}`.")
        return ExitCode.OK
    steps = [
        *([_NAMING] if component.name == "agent" and plan.new_settings else []),
        *([_JOINING] if component.name == "agent" and plan.new_settings else []),
        f"`systemctl enable --now {component.service}`, which starts it now and at every boot",
    ]
    print("\n".join(["What comes next:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]))
    return ExitCode.OK


_NAMING = "name your registry in /etc/gpu-agent/agent.toml; `gpu-agent config check agent` looks it through"
_JOINING = (
    "put a join token into /etc/gpu-agent/join-token, mode 0600; `gpu-agent registry token create` makes one"
)


def _why_not_ready(component: Component, plan: Plan) -> str | None:
    """Say why it should not be started yet, with the next step."""
    if component.name == "agent" and plan.new_settings:
        return f"it has no registry of yours to go to. First {_NAMING}"
    try:
        CONFIGURATIONS[component.name].load({}, None)
    except SettingsError as error:
        return f"its settings cannot be used:\n{error}"
    settings = this_machine().at(component.settings_file)
    found = first_inaccessible([settings], find_user(component.service), unit="")
    if found is not None:
        return (
            f"its user {component.service} cannot read {settings}: closed to it is {found}. First open that"
        )
    return None


def declare_uninstall() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Stop the service, and remove what `gpu-agent service install` installed. Settings and state "
        "stay, "
        "so that another install continues with the same id, unless --purge deletes them. The program itself "
        "stays: `pip uninstall gpu-agent` removes that.",
        example="gpu-agent service uninstall --dry-run",
        exits={
            ExitCode.OK: "it is no service of this machine",
            ExitCode.FAILED: "a step failed; fix that and run it again",
            ExitCode.CONFIGURATION: "refused: no systemd, not root, or it is a package's, or somebody else's",
        },
        asks=False,
        params=[
            *component_argument(),
            option("--purge", help="delete its settings, its tokens and its state, too", flag=True),
            option("--dry-run", help="only say what would be done", flag=True),
        ],
    )


def run_uninstall(arguments: Arguments) -> int:
    """Plan the steps and run them."""
    component = COMPONENTS[arguments.component]
    here = this_machine()
    try:
        here.require_systemd()
        if not arguments.dry_run:
            here.require_root(f"gpu-agent service uninstall {component.name}")
        plan = plan_uninstall(component, here, purge=arguments.purge)
    except RefusedError as error:
        raise refused(error) from None
    if arguments.dry_run:
        print("\n".join(f"would {step}" for step in plan.steps) or "nothing would be done")
        return ExitCode.OK
    try:
        run_steps(plan.steps, lambda step: print(f"done: {step}"))
    except StepError as error:
        raise Failure(f"{error}. Fix that and run this again") from None
    print("\n".join(_uninstalled_lines(component, plan)))
    return ExitCode.OK


def _uninstalled_lines(component: Component, plan: Plan) -> list[str]:
    first = "is no service of this machine any more." if plan.changed else "was no service; nothing was done."
    remaining = [f"Not removed: {', '.join(map(str, plan.remaining))}."] if plan.remaining else []
    user = f"The user {component.service} stays: a file may still belong to it."
    return [
        f"The {component.name} {first}",
        *remaining,
        *([user] if find_user(component.service).uid is not None else []),
    ]


SCHEMA = "gpu-agent.service/1"
_INSTALLED_BY = {
    InstalledBy.PIP: "`gpu-agent service install`",
    InstalledBy.PACKAGE: "a package",
    InstalledBy.HAND: "a unit written by hand",
}
_NAME_COLUMNS = 13


def declare_status() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show the service of this machine as systemd has it: who installed it, whether it is enabled "
        "and "
        "runs, since when, whether its unit fits this program, and the last lines of its log, where you may "
        "read them.",
        example="gpu-agent service status",
        exits={
            ExitCode.OK: "it runs",
            ExitCode.FAILED: "it does not run, or there is none",
            ExitCode.CONFIGURATION: "wrong arguments, or no systemd here",
        },
        asks=False,
        params=[*component_argument(), option("--json", help="print one object, for programs", flag=True)],
    )


def run_status(arguments: Arguments) -> int:
    """Read the service's state and print it."""
    component = COMPONENTS[arguments.component]
    here = this_machine()
    try:
        here.require_systemd()
        written = unit_files(component, program_path(), __version__, source=here.source)[component.unit_file]
        standing = service_status(component, written)
    except (RefusedError, UnwritablePathError) as error:
        raise refused(error) from None
    except StepError as error:
        raise Failure(str(error) if here.uid == 0 else f"{error}; ask as root") from None
    if arguments.json:
        print_json(_status_document(component, standing))
    else:
        print_lines([*_status_lines(component, standing)])
    return ExitCode.OK if standing.runs else ExitCode.FAILED


def _status_document(component: Component, standing: ServiceStatus) -> dict[str, object]:
    found = asdict(standing)
    brought_by = found.pop("origin")
    facts = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in found.items()
        if name not in ("lines", "environment")
    }
    return {
        "schema": SCHEMA,
        "component": component.name,
        "unit": component.unit,
        "installed_by": brought_by,
        "runs": standing.runs,
        **facts,
        "program_version": __version__,
        "lines": [redact_secrets(one) for one in standing.lines],
    }


def _status_lines(component: Component, standing: ServiceStatus) -> Iterator[Line]:
    if standing.origin is None:
        yield line(
            f"{component.unit} is not installed; `gpu-agent service install {component.name}` does that"
        )
        return
    style = "green" if standing.runs else "bold red" if standing.active == "failed" else "yellow"
    yield line(
        f"{component.unit} is ", Piece(f"{standing.active} ({standing.sub})", style), _since(standing.since)
    )
    for name, words in _facts(component, standing):
        yield line(Piece(f"  {name:<{_NAME_COLUMNS}}", "dim"), words)
    yield line(Piece("  last lines", "dim"), f" (all: `journalctl --unit {component.unit}`)")
    for one in standing.lines or ("none, or none that you may read",):
        yield line(f"    {redact_secrets(one)}")


def _facts(component: Component, standing: ServiceStatus) -> Iterator[tuple[str, str]]:
    if standing.status_text is not None and (standing.runs or standing.result in (None, "success")):
        yield "status", standing.status_text
    if standing.main_pid is not None:
        yield "process", f"{standing.main_pid}, {standing.restarts or 0} restarts by systemd"
    elif standing.result not in (None, "success"):
        yield "it ended", end_in_words(standing)
    if standing.origin is not None:
        yield "installed by", f"{_INSTALLED_BY[standing.origin]}: {standing.file}"
    yield "at boot", "started" if standing.enabled == "enabled" else f"not started ({standing.enabled})"
    if standing.program is not None:
        yield "starts", standing.program
    yield from _unit_facts(component, standing)


def _unit_facts(component: Component, standing: ServiceStatus) -> Iterator[tuple[str, str]]:
    """Say whether the unit belongs to this version of the program."""
    if standing.current is not None:
        fits = f"as this version ({__version__}) writes it"
        other = (
            f"written by version {standing.version}, and other than this one ({__version__}, "
            f"{program_path()}) has it: run `gpu-agent service install {component.name}` again"
        )
        yield "unit", fits if standing.current else other
    if standing.unread:
        yield "unit", "changed since systemd read it: run `systemctl daemon-reload`"


def _since(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime(" since %Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


COMMANDS: Commands = {
    "install": (declare_install, run_install),
    "uninstall": (declare_uninstall, run_uninstall),
    "status": (declare_status, run_status),
}
