"""The state of a systemd service of ours: what installed it, whether it runs, its last log lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gpu_agent.runtime.systemd.install import StepError, run_program
from gpu_agent.runtime.systemd.units import Component, written_by_version

LOG_LINES = 5
"""So many lines of the log are shown."""
_PROPERTIES = (
    "LoadState,ActiveState,SubState,UnitFileState,MainPID,ActiveEnterTimestamp,InactiveEnterTimestamp,"
    "FragmentPath,StatusText,NRestarts,Result,ExecMainStatus,NeedDaemonReload,ExecStart"
)
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
    lines: tuple[str, ...] = ()
    """The last of its log, the newest last."""

    @property
    def runs(self) -> bool:
        """Whether it is active."""
        return self.active == "active"


def service_status(component: Component, written: str) -> ServiceStatus:
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
        current=text == written if written_by else None,
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
        lines=_last_lines(component),
    )


def _origin(component: Component, file: Path | None, *, ours: bool) -> InstalledBy:
    if ours:
        return InstalledBy.PIP
    packaged = {Path("/") / path for path in component.packaged_unit_files}
    return InstalledBy.PACKAGE if file in packaged else InstalledBy.HAND


def _last_lines(component: Component) -> tuple[str, ...]:
    """Read the end of the log; empty for a user who may not read it."""
    words = (
        "journalctl",
        "--no-pager",
        "--quiet",
        "--output=cat",
        f"--lines={LOG_LINES}",
        f"--unit={component.unit}",
    )
    try:
        code, output = run_program(words)
    except StepError:
        return ()
    return tuple(output.splitlines()) if code == 0 else ()


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
