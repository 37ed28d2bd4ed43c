"""The state of a systemd service of ours: what installed it, whether it runs, its last log lines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gpu_agent.runtime.systemd.install import StepError, run_program
from gpu_agent.runtime.systemd.units import Component, written_by_version

LOG_LINES = 5
"""How much of the log is shown."""
_PROPERTIES = (
    "LoadState,ActiveState,SubState,UnitFileState,MainPID,ActiveEnterTimestamp,InactiveEnterTimestamp,"
    "FragmentPath,StatusText,NRestarts,Result,ExecMainStatus,NeedDaemonReload,ExecStart"
)
_STARTED = re.compile(r"\{ path=(.*?) ; argv\[\]=")


class InstalledBy(StrEnum):
    """Who brought a unit."""

    PIP = "pip"
    """`gpu-agent service install`, out of an environment of pip's."""
    PACKAGE = "package"
    HAND = "hand"
    """Somebody who put a unit of his own there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One look at a service. What nobody can say is None."""

    origin: InstalledBy | None
    """None where there is no such service."""
    file: Path | None = None
    program: str | None = None
    """What the unit starts, as systemd has read it."""
    version: str | None = None
    """The version that wrote the unit, where one of ours did."""
    current: bool | None = None
    """Whether the unit is as this program would write it; only of one that it wrote."""
    unread: bool = False
    """Whether the unit was changed since systemd read it."""
    enabled: str | None = None
    active: str | None = None
    sub: str | None = None
    since: float | None = None
    """When it came up, or went down where it is down: seconds since 1970."""
    main_pid: int | None = None
    restarts: int | None = None
    says: str | None = None
    """What the program tells systemd of itself."""
    result: str | None = None
    exit_code: int | None = None
    lines: tuple[str, ...] = ()
    """The last of its log, the newest last."""

    @property
    def runs(self) -> bool:
        """Whether it is up."""
        return self.active == "active"


def service_status(component: Component, written: str) -> ServiceStatus:
    """Look at one service; `written` is the unit as it would be. Raises `StepError` if systemd is silent."""
    code, said = run_program(
        ("systemctl", "show", "--timestamp=unix", f"--property={_PROPERTIES}", component.unit),
    )
    if code != 0:
        raise StepError(f"systemd does not answer: {said.strip() or f'exit code {code}'}")
    told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if told.get("LoadState") == "not-found":
        return ServiceStatus(origin=None)
    file = Path(told["FragmentPath"]) if told.get("FragmentPath") else None
    text = _text(file)
    written_by = None if text is None else written_by_version(text)
    entered = "ActiveEnterTimestamp" if told.get("ActiveState") == "active" else "InactiveEnterTimestamp"
    return ServiceStatus(
        origin=_origin(component, file, ours=written_by is not None),
        file=file,
        program=_program(told.get("ExecStart", "")),
        version=written_by,
        current=text == written if written_by else None,
        unread=told.get("NeedDaemonReload") == "yes",
        enabled=told.get("UnitFileState") or None,
        active=told.get("ActiveState") or None,
        sub=told.get("SubState") or None,
        since=_seconds(told.get(entered, "")),
        main_pid=_number(told, "MainPID") or None,
        restarts=_number(told, "NRestarts"),
        says=told.get("StatusText") or None,
        result=told.get("Result") or None,
        exit_code=_number(told, "ExecMainStatus"),
        lines=_last_lines(component),
    )


def _origin(component: Component, file: Path | None, *, ours: bool) -> InstalledBy:
    if ours:
        return InstalledBy.PIP
    packaged = {Path("/") / path for path in component.packaged_unit_files}
    return InstalledBy.PACKAGE if file in packaged else InstalledBy.HAND


def _last_lines(component: Component) -> tuple[str, ...]:
    """Read the end of the log; nothing where whoever looks may not."""
    words = (
        "journalctl",
        "--no-pager",
        "--quiet",
        "--output=cat",
        f"--lines={LOG_LINES}",
        f"--unit={component.unit}",
    )
    try:
        code, said = run_program(words)
    except StepError:
        return ()
    return tuple(said.splitlines()) if code == 0 else ()


def _text(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _program(told: str) -> str | None:
    """Read `{ path=/usr/bin/gpu-agent ; argv[]=… }`."""
    found = _STARTED.match(told)
    return found[1] if found else None


def _seconds(told: str) -> float | None:
    """Read `@1764360000`; systemd has none of what never happened."""
    return float(told[1:]) if told.startswith("@") and told[1:].isdecimal() and told != "@0" else None


def _number(told: Mapping[str, str], name: str) -> int | None:
    value = told.get(name, "")
    return int(value) if value.isdecimal() else None
