"""The state of a systemd service of ours: what installed it, whether it runs, how it ended, its log's end."""

import re
import shlex
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gpu_agent.runtime.check_results import CheckResult, fail, ok, skipped, warn
from gpu_agent.runtime.sdnotify import ENDED
from gpu_agent.runtime.systemd.install import StepError, run_program
from gpu_agent.runtime.systemd.units import Component, written_by_version

LOG_LINES = 5
"""So many lines of the log are shown."""
_PROPERTIES = (
    "LoadState,ActiveState,SubState,UnitFileState,MainPID,ActiveEnterTimestamp,InactiveEnterTimestamp,"
    "FragmentPath,StatusText,NRestarts,Result,ExecMainStatus,NeedDaemonReload,ExecStart,Environment"
)
_RESULT = re.compile(r"Failed with result '([^']+)'")
_LAST_ENDS = {
    "signal": "a signal killed it",
    "oom-kill": "the kernel killed it for want of memory",
    "watchdog": "it stood still (watchdog)",
    "exit-code": "it ended with an error",
    "core-dump": "it crashed (core-dump)",
    "timeout": "it did not start or stop in time",
}
_BOOTED = Path("/run/systemd/system")
"""There exactly where systemd is PID 1."""
_STARTED = re.compile(r"\{ path=(.*?) ; argv\[\]=")


class InstalledBy(StrEnum):
    """What installed a unit."""

    PIP = "pip"
    """`gpu-agent service install`, from an environment made with pip."""
    PACKAGE = "package"
    HAND = "hand"
    """An administrator who wrote a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """The state of a service at one moment. Unknown is None."""

    origin: InstalledBy | None
    """None without such a service."""
    file: Path | None = None
    program: str | None = None
    """What the unit starts, as systemd has read it."""
    version: str | None = None
    """The version that wrote the unit, where one of ours did."""
    current: bool | None = None
    """Whether the unit is as this program would write it; only for one that it wrote."""
    unread: bool = False
    """Whether the unit has changed since systemd read it."""
    enabled: str | None = None
    active: str | None = None
    sub: str | None = None
    since: float | None = None
    """When it started, or stopped where it is stopped: seconds since 1970."""
    main_pid: int | None = None
    restarts: int | None = None
    status_text: str | None = None
    """The line that the program sends to systemd."""
    result: str | None = None
    exit_code: int | None = None
    last_end: str | None = None
    """How it ended the last time that systemd had to start it again, in systemd's words."""
    lines: tuple[str, ...] = ()
    """The last of its log, the newest last."""
    environment: tuple[str, ...] = ()
    """The variables that the unit gives it, each `NAME=value`."""

    @property
    def runs(self) -> bool:
        """Whether it is active."""
        return self.active == "active"


def service_status(component: Component, written: str | None = None) -> ServiceStatus:
    """Read the state of a service; `written` is the unit as it should be. Raises `StepError`."""
    code, output = run_program(
        ("systemctl", "show", "--timestamp=unix", f"--property={_PROPERTIES}", component.unit),
    )
    if code != 0:
        raise StepError(f"systemd does not answer: {output.strip() or f'exit code {code}'}")
    properties = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    if properties.get("LoadState") == "not-found":
        return ServiceStatus(origin=None)
    file = Path(properties["FragmentPath"]) if properties.get("FragmentPath") else None
    text = _text(file)
    written_by = None if text is None else written_by_version(text)
    entered = (
        "ActiveEnterTimestamp" if properties.get("ActiveState") == "active" else "InactiveEnterTimestamp"
    )
    return ServiceStatus(
        origin=_origin(component, file, ours=written_by is not None),
        file=file,
        program=_program(properties.get("ExecStart", "")),
        version=written_by,
        current=text == written if written_by and written is not None else None,
        unread=properties.get("NeedDaemonReload") == "yes",
        enabled=properties.get("UnitFileState") or None,
        active=properties.get("ActiveState") or None,
        sub=properties.get("SubState") or None,
        since=_seconds(properties.get(entered, "")),
        main_pid=_number(properties, "MainPID") or None,
        restarts=_number(properties, "NRestarts"),
        status_text=properties.get("StatusText") or None,
        result=properties.get("Result") or None,
        exit_code=_number(properties, "ExecMainStatus"),
        last_end=_last_end(component) if _number(properties, "NRestarts") else None,
        lines=_last_lines(component),
        environment=_environment(properties.get("Environment", "")),
    )


def find_service(component: Component) -> ServiceStatus | None:
    """Read the state of a service; None where systemd does not run this machine, or gives no answer."""
    if not _BOOTED.is_dir():
        return None
    try:
        return service_status(component)
    except StepError:
        return None


def judge_service(component: Component, standing: ServiceStatus) -> CheckResult:
    """Judge whether a service runs, and say how it ended where it does not, with the next step."""
    unit, start = component.unit, f"`systemctl start {component.service}`"
    log = f"`journalctl --unit {component.service}` has its log"
    match standing.active:
        case _ if standing.origin is None:
            return skipped("service", f"{unit} is not installed on this machine")
        case "active":
            return _judge_running(component, standing)
        case "failed":
            what = f"{unit} failed{_at(standing.since)}: it ended {end_in_words(standing)}"
            return fail("service", what, f"remove the cause, then run {start}; {log}")
        case "activating" if standing.sub == "auto-restart":
            before = f" ({_restarts(standing)} before)" if standing.restarts else ""
            what = f"{unit} is about to be started again{before}: it ended {end_in_words(standing)}"
            return fail("service", what, f"wait a moment, since systemd starts it again; {log}")
        case "inactive":
            stopped = "was never started" if standing.since is None else f"was stopped{_at(standing.since)}"
            boots = standing.enabled == "enabled"
            what = f"{unit} {stopped}" + ("" if boots else ", and is not started at boot")
            return warn("service", what, f"run {start if boots else _enable(component)}")
        case _:
            return warn("service", f"{unit} is {standing.active} ({standing.sub})", log)


def end_in_words(standing: ServiceStatus) -> str:
    """Say how a service ended: "with exit code 4: …"; the program's own reason where it has sent one."""
    number, why = standing.exit_code, ""
    if standing.status_text is not None and standing.status_text.startswith(ENDED):
        why = f": {standing.status_text.removeprefix(ENDED)}"
    match standing.result:
        case "exit-code":
            return f"with exit code {number}{why}"
        case "oom-kill":
            return "by the kernel's kill for want of memory (oom-kill)"
        case "signal" | "core-dump":
            return f"by signal {number}{_signal_name(number)}"
        case "watchdog":
            return f"by systemd's watchdog, signal {number}{_signal_name(number)}: it stood still"
        case other:
            return f"by {other}"


def _judge_running(component: Component, standing: ServiceStatus) -> CheckResult:
    boots = standing.enabled == "enabled"
    what = f"{component.unit} runs, process {standing.main_pid}{_since(standing)}"
    if standing.restarts:
        last = _LAST_ENDS.get(standing.last_end or "", standing.last_end)
        what += f"; {_restarts(standing)}" + (f", last because {last}" if last else "")
    if not boots:
        return warn("service", f"{what}; it is not started at boot", f"run {_enable(component)}")
    if standing.restarts:
        return warn("service", what, f"see why it ended: `journalctl --unit {component.service}`")
    return ok("service", what)


def _enable(component: Component) -> str:
    return f"`systemctl enable --now {component.service}`"


def _restarts(standing: ServiceStatus) -> str:
    times = "once" if standing.restarts == 1 else f"{standing.restarts} times"
    return f"systemd has started it again {times}"


def _since(standing: ServiceStatus) -> str:
    return (
        "" if standing.since is None else time.strftime(" since %H:%M UTC on %F", time.gmtime(standing.since))
    )


def _at(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime(" at %H:%M:%S UTC on %F", time.gmtime(seconds))


def _signal_name(number: int | None) -> str:
    try:
        return f" ({signal.Signals(number or 0).name})"
    except ValueError:
        return ""


def _origin(component: Component, file: Path | None, *, ours: bool) -> InstalledBy:
    if ours:
        return InstalledBy.PIP
    packaged = {Path("/") / path for path in component.packaged_unit_files}
    return InstalledBy.PACKAGE if file in packaged else InstalledBy.HAND


def _last_lines(component: Component, *selected: str, lines: int = LOG_LINES) -> tuple[str, ...]:
    """Read the end of the log; empty for a user who may not read it."""
    words = (
        "journalctl",
        "--no-pager",
        "--quiet",
        "--output=cat",
        f"--lines={lines}",
        f"--unit={component.unit}",
        *selected,
    )
    try:
        code, output = run_program(words)
    except StepError:
        return ()
    return tuple(output.splitlines()) if code == 0 else ()


def _last_end(component: Component) -> str | None:
    """Find in the log how systemd saw the service end; None for a user who may not read it."""
    seen = _last_lines(component, "--grep=Failed with result", lines=1)
    found = _RESULT.search(seen[-1]) if seen else None
    return None if found is None else found[1]


def _environment(stated: str) -> tuple[str, ...]:
    """Read the variables as systemd quotes them; none where that is not understood."""
    try:
        return tuple(one for one in shlex.split(stated) if "=" in one)
    except ValueError:
        return ()


def _text(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _program(stated: str) -> str | None:
    """Read `{ path=/usr/bin/gpu-agent ; argv[]=… }`."""
    found = _STARTED.match(stated)
    return found[1] if found else None


def _seconds(stated: str) -> float | None:
    """Read `@1764360000`; None for what never happened."""
    return float(stated[1:]) if stated.startswith("@") and stated[1:].isdecimal() and stated != "@0" else None


def _number(properties: Mapping[str, str], name: str) -> int | None:
    value = properties.get(name, "")
    return int(value) if value.isdecimal() else None
