"""Install a component as a systemd service after a pip install, and uninstall it: plan first, then steps.

Refuses to touch what is not its own: a package's service, and units that others wrote. Settings and state are
never overwritten, and removed only with `--purge`. A file is put in place whole or not at all, never through
a link; the first step that fails ends the run. Before anything is planned, file modes and the unit's own
restrictions are checked: the service's user must reach the program (ACLs are not read).
"""

import os
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_agent.runtime.systemd.units import (
    Component,
    UnwritablePathError,
    conf_file,
    example_settings,
    unit_files,
    written_by_version,
)

_BOOTED = Path("run/systemd/system")
"""There exactly where systemd is PID 1."""
_RELOAD = ("systemctl", "daemon-reload")
_MAX_PROGRAM_SECONDS = 120.0
_FOLDER_MODE = 0o755
_READ, _ENTER = 4, 1
_OWNER_SHIFT, _GROUP_SHIFT, _OTHERS_SHIFT = 6, 3, 0
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - named, not used
_SEEN_HOMES = frozenset({"no", "false", "off", "0", "read-only"})
_YES = frozenset({"yes", "true", "on", "1", "disconnected"})


class RefusedError(Exception):
    """This machine or this user cannot do it: a sentence with the next step. Nothing was changed."""


class StepError(Exception):
    """A step failed on this machine: a sentence."""


@dataclass(frozen=True, slots=True)
class Program:
    """What the service runs."""

    path: Path
    version: str
    parts: tuple[Path, ...]
    """Files that it needs: its interpreter, its libraries."""


@dataclass(frozen=True, slots=True)
class User:
    """A user with its number; one that does not exist yet has none, and owns nothing."""

    name: str
    uid: int | None = None
    gids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class AccessDenied:
    """Where the access to a path ends, and why."""

    place: Path
    why: str
    path: Path | None = None
    """The path that cannot be reached."""

    def __str__(self) -> str:
        """Write it as a part of a sentence."""
        return f"{self.place} ({self.why})"


@dataclass(frozen=True, slots=True)
class Write:
    """Write a file, replacing an older one, and make its directories. Never through a link."""

    path: Path
    text: str
    mode: int = 0o644

    def __str__(self) -> str:
        """Name the step."""
        return f"write {self.path}"

    def carry_out(self) -> None:
        """Run the step."""
        _make(self.path.parent)
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode), "w", encoding="utf-8"
            ) as file:
                os.fchmod(file.fileno(), self.mode)  # whatever the umask
                file.write(self.text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file or a link, or a directory with its content."""

    path: Path

    def __str__(self) -> str:
        """Name the step."""
        return f"remove {self.path}"

    def carry_out(self) -> None:
        """Run the step; the target of a link stays."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RemoveEmpty:
    """Remove a directory that is empty."""

    path: Path

    def __str__(self) -> str:
        """Name the step."""
        return f"remove {self.path} if it is empty"

    def carry_out(self) -> None:
        """Run the step."""
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


@dataclass(frozen=True, slots=True)
class Run:
    """Run a program of the machine."""

    words: tuple[str, ...]
    may_fail: bool = False

    def __str__(self) -> str:
        """Name the step."""
        return f"run {' '.join(self.words)}"

    def carry_out(self) -> None:
        """Run the step."""
        code, said = run_program(self.words)
        if code != 0 and not self.may_fail:
            lines = said.strip().splitlines()
            raise StepError(f"`{' '.join(self.words)}` failed: {lines[-1] if lines else f'exit code {code}'}")


Step = Write | Remove | RemoveEmpty | Run


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine: its root, the files that the program brought, and the user who runs the command."""

    root: Path
    source: Path
    uid: int

    def at(self, path: Path) -> Path:
        """Return where a path from the root is."""
        return self.root / path

    def require_systemd(self) -> None:
        """Raise `RefusedError` where systemd does not run this machine."""
        if not self.at(_BOOTED).is_dir():
            raise RefusedError(
                "this machine is not run by systemd: start the program in the foreground (`gpu-agent run`), "
                "or by whatever starts others here"
            )

    def require_root(self, command: str) -> None:
        """Raise `RefusedError` for a user who may not change the machine."""
        if self.uid != 0:
            raise RefusedError(f"only root may do this: run it again as root, such as with `sudo {command}`")

    def unit_of_package(self, component: Component) -> Path | None:
        """Find the unit of a package."""
        found = (self.at(path) for path in component.packaged_unit_files)
        return next((path for path in found if path.exists()), None)

    def refuse_beside_package(self, component: Component) -> None:
        """Raise `RefusedError` where a package has made the half a service already."""
        packaged = self.unit_of_package(component)
        if packaged is None:
            return
        ours = _text(self.at(component.unit_file))
        if ours is not None and written_by_version(ours) is not None:
            raise RefusedError(
                f"a package has brought this service ({packaged}), and the unit of an install by pip hides "
                f"it: remove that with `gpu-agent service uninstall {component.name}`, which keeps settings "
                f"and state, then run `systemctl enable --now {component.service}`"
            )
        raise RefusedError(
            f"a package has brought this service ({packaged}): use that, by `systemctl enable --now "
            f"{component.service}`, or remove the package {component.service} first"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    steps: tuple[Step, ...]
    changed: bool
    """Whether anything differs from what it should be."""
    new_settings: bool = False
    """Whether the settings file is new, made from the example."""
    remaining: tuple[Path, ...] = ()
    """What stays on the machine."""


def plan_install(component: Component, program: Program, *, place: Machine, user: User) -> Plan:
    """Plan to install it as a service; raises `RefusedError`."""
    place.refuse_beside_package(component)
    try:
        files = unit_files(component, program.path, program.version, source=place.source)
    except UnwritablePathError as error:
        raise RefusedError(str(error)) from None
    _refuse_files_of_others(place.at(path) for path in files)
    _refuse_unreachable(program, user, files[component.unit_file])
    writes = [Write(place.at(path), text) for path, text in files.items() if _text(place.at(path)) != text]
    settings = place.at(component.settings_file)
    new_settings = not os.path.lexists(settings)
    if new_settings:
        writes.append(Write(settings, example_settings(component, source=place.source)))
    return Plan((*writes, *_activation(component, place, files)), bool(writes), new_settings)


def plan_uninstall(component: Component, place: Machine, *, purge: bool) -> Plan:
    """Plan to remove the service, and with `purge` its settings and state; raises `RefusedError`."""
    packaged = place.unit_of_package(component)
    ours = [place.at(path) for path in (component.unit_file, *_conf_files(component))]
    if packaged is not None and not os.path.lexists(ours[0]):
        raise RefusedError(
            f"a package has brought this service ({packaged}): remove that, by `apt-get remove "
            f"{component.service}` or `dnf remove {component.service}`"
        )
    _refuse_files_of_others(ours)
    there = [path for path in ours if os.path.lexists(path)]
    data = [path for path in _owner_data(component, place) if os.path.lexists(path)]
    steps: list[Step] = []
    if ours[0] in there:
        steps.append(Run(("systemctl", "disable", "--now", component.unit)))
    steps += map(Remove, there)
    if there:
        steps.append(Run(_RELOAD))
        steps.append(Run(("systemctl", "reset-failed", component.unit), may_fail=True))
    if purge:
        steps += [*map(Remove, data), RemoveEmpty(place.at(component.settings_file).parent)]
    drop_ins = place.at(component.drop_ins)
    remaining = [*([] if purge else data), *([drop_ins] if drop_ins.exists() else [])]
    return Plan(tuple(steps), bool(there or (purge and data)), remaining=tuple(remaining))


def run_steps(steps: Iterable[Step], done: Callable[[Step], None]) -> None:
    """Run all steps in order; `done` receives each. Raises `StepError` at the first that fails."""
    for step in steps:
        try:
            step.carry_out()
        except OSError as error:
            raise StepError(f"cannot {step} ({error.strerror or error})") from error
        done(step)


def run_program(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a program of the machine; returns its exit code and its output. Raises `StepError`."""
    try:
        done = subprocess.run(  # noqa: S603 - words of our own
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_MAX_PROGRAM_SECONDS,
        )
    except FileNotFoundError:
        raise StepError(f"this machine has no {words[0]}") from None
    except subprocess.TimeoutExpired:
        raise StepError(f"`{' '.join(words)}` did not end within {_MAX_PROGRAM_SECONDS:g} s") from None
    return done.returncode, done.stdout.decode("utf-8", "replace")


def find_user(name: str) -> User:
    """Look up a user of this machine."""
    if sys.platform == "win32":
        return User(name)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return User(name)
    return User(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def first_inaccessible(paths: Iterable[Path], user: User, *, unit: str) -> AccessDenied | None:
    """Find the first directory or file on the way to any of the paths that a user of that unit cannot access.

    ACLs beyond the file modes are not read.
    """
    hidden = tuple(_hidden_directories(unit))
    for path in paths:
        for place in _way(path):
            for directory, why in hidden:
                if place.is_relative_to(directory):
                    return AccessDenied(directory, why, path)
            found = _denied(place, user)
            if found is not None:
                return replace(found, path=path)
    return None


if sys.platform != "win32":
    import pwd


def _hidden_directories(unit: str) -> Iterator[tuple[Path, str]]:
    """Yield the directories that the unit hides from its service, and why."""
    stated = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and line[:1].isalpha())
    homes = stated.get("ProtectHome", "no").strip().lower()
    if homes not in _SEEN_HOMES:
        yield from ((folder, f"the unit says ProtectHome={homes}") for folder in _HOMES)
    if stated.get("PrivateTmp", "no").strip().lower() in _YES:
        yield from ((folder, "the unit says PrivateTmp=yes") for folder in _TEMPORARY)


def _way(path: Path) -> Iterator[Path]:
    """Yield every step on the way to a path, from the root on: first where links lead to."""
    for way in dict.fromkeys((path.resolve(), path.absolute())):
        yield from reversed(way.parents)
        yield way


def _denied(place: Path, user: User) -> AccessDenied | None:
    try:
        found = place.stat()
    except OSError as error:
        return AccessDenied(place, error.strerror or str(error))
    needed = _ENTER if stat.S_ISDIR(found.st_mode) else _READ
    if user.uid is not None and found.st_uid == user.uid:
        shift = _OWNER_SHIFT
    elif found.st_gid in user.gids:
        shift = _GROUP_SHIFT
    else:
        shift = _OTHERS_SHIFT
    if found.st_mode >> shift & needed:
        return None
    return AccessDenied(place, f"mode {stat.S_IMODE(found.st_mode):04o}, of user {found.st_uid}")


def _make(folder: Path) -> None:
    """Make a directory and those above it, open to all: the service's user must enter, whatever the umask."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir()
        place.chmod(_FOLDER_MODE)


def _activation(component: Component, place: Machine, files: dict[Path, str]) -> Iterator[Step]:
    """Yield what makes systemd read the files; it can be repeated."""
    for kind, program in (
        ("sysusers", ("systemd-sysusers",)),
        ("tmpfiles", ("systemd-tmpfiles", "--create")),
    ):
        if conf_file(component, kind) in files:
            yield Run((*program, str(place.at(conf_file(component, kind)))))
    yield Run(_RELOAD)


def _conf_files(component: Component) -> list[Path]:
    return [conf_file(component, kind) for kind in ("sysusers", "tmpfiles")]


def _owner_data(component: Component, place: Machine) -> Iterator[Path]:
    """Yield the paths of the owner's data: settings, secrets, state."""
    settings = place.at(component.settings_file)
    yield settings
    yield from (settings.parent / name for name in component.secrets)
    yield place.at(component.state_dir)


def _refuse_files_of_others(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_symlink():
            raise RefusedError(f"{path} is a link to {path.readlink()}: remove it first, if that is meant")
        text = _text(path)
        if text is not None and written_by_version(text) is None:
            raise RefusedError(
                f"{path} was not written by `gpu-agent service install`: move it away first; changes of your "
                "own belong into a drop-in (`systemctl edit`)"
            )


def _refuse_unreachable(program: Program, user: User, unit: str) -> None:
    found = first_inaccessible((program.path, *program.parts), user, unit=unit)
    if found is not None:
        needs = "" if found.path == program.path else f", which {program.path} needs"
        raise RefusedError(
            f"the service's user {user.name} cannot get at {found.path}{needs}: closed to it is {found}. "
            "Install into an environment elsewhere, such as /opt/gpu-agent: `python3 -m venv /opt/gpu-agent` "
            "and `/opt/gpu-agent/bin/pip install gpu-agent`"
        )


def _text(path: Path) -> str | None:
    """Read a file; None where it is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
