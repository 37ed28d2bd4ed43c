"""One half made a service of this machine, as the packages do it, and unmade again.

It plans; the steps are carried out by whoever asked. It refuses what is not its own to touch: a package's
service, and units that others wrote. Settings and state are never overwritten, and removed only on demand.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.runtime.services.reach import User, closed
from gpu_agent.runtime.services.steps import Remove, RemoveEmpty, Run, Step, Write
from gpu_agent.runtime.services.unit_files import (
    Half,
    UnwritablePathError,
    conf_file,
    example_of,
    files_of,
    version_in,
)

_BOOTED = Path("run/systemd/system")
"""There exactly where systemd is PID 1."""
_RELOAD = ("systemctl", "daemon-reload")


class RefusedError(Exception):
    """This machine, or who asks, is not one for it: a sentence with the next step. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Program:
    """What the service is to run."""

    path: Path
    version: str
    parts: tuple[Path, ...]
    """Files that it cannot run without: its interpreter, its libraries."""


@dataclass(frozen=True, slots=True)
class Place:
    """The machine: its root, the files that the program brought, and who asks."""

    root: Path
    source: Path
    uid: int

    def at(self, path: Path) -> Path:
        """Where a path from the root lies."""
        return self.root / path

    def refuse_without_systemd(self) -> None:
        """Raise `RefusedError` where systemd does not run this machine."""
        if not self.at(_BOOTED).is_dir():
            raise RefusedError(
                "this machine is not run by systemd: start the program in the foreground (`gpu-agent run`), "
                "or by whatever starts others here"
            )

    def refuse_anybody_but_root(self, command: str) -> None:
        """Raise `RefusedError` where who asks may not change the machine."""
        if self.uid != 0:
            raise RefusedError(f"only root may do this: run it again as root, such as with `sudo {command}`")

    def unit_of_package(self, half: Half) -> Path | None:
        """Find the unit that a package brought."""
        found = (self.at(path) for path in half.packaged_unit_files)
        return next((path for path in found if path.exists()), None)

    def refuse_beside_a_package(self, half: Half) -> None:
        """Raise `RefusedError` where a package has made the half a service already."""
        packaged = self.unit_of_package(half)
        if packaged is None:
            return
        ours = _text(self.at(half.unit_file))
        if ours is not None and version_in(ours) is not None:
            raise RefusedError(
                f"a package has brought this service ({packaged}), and the unit of an install by pip hides "
                f"it: remove that with `gpu-agent service uninstall {half.name}`, which keeps settings and "
                f"state, then run `systemctl enable --now {half.service}`"
            )
        raise RefusedError(
            f"a package has brought this service ({packaged}): use that, by `systemctl enable --now "
            f"{half.service}`, or remove the package {half.service} first"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, and what was found on the way."""

    steps: tuple[Step, ...]
    changed: bool
    """Whether anything is other than it should be."""
    new_settings: bool = False
    """Whether the settings are only now made, from the example."""
    kept: tuple[Path, ...] = ()
    """What stays, of what is there."""


def installation(half: Half, program: Program, *, place: Place, user: User) -> Plan:
    """Plan to make it a service; raises `RefusedError`."""
    place.refuse_beside_a_package(half)
    try:
        files = files_of(half, program.path, program.version, source=place.source)
    except UnwritablePathError as error:
        raise RefusedError(str(error)) from None
    _refuse_files_of_others(place.at(path) for path in files)
    _refuse_unreachable(program, user, files[half.unit_file])
    writes = [Write(place.at(path), text) for path, text in files.items() if _text(place.at(path)) != text]
    settings = place.at(half.settings_file)
    new_settings = not os.path.lexists(settings)
    if new_settings:
        writes.append(Write(settings, example_of(half, source=place.source)))
    return Plan((*writes, *_taking_effect(half, place, files)), bool(writes), new_settings)


def removal(half: Half, place: Place, *, purge: bool) -> Plan:
    """Plan to unmake the service, and with `purge` what it knew; raises `RefusedError`."""
    packaged = place.unit_of_package(half)
    ours = [place.at(path) for path in (half.unit_file, *_conf_files(half))]
    if packaged is not None and not os.path.lexists(ours[0]):
        raise RefusedError(
            f"a package has brought this service ({packaged}): remove that, by `apt-get remove "
            f"{half.service}` or `dnf remove {half.service}`"
        )
    _refuse_files_of_others(ours)
    there = [path for path in ours if os.path.lexists(path)]
    knows = [path for path in _knowledge(half, place) if os.path.lexists(path)]
    steps: list[Step] = []
    if ours[0] in there:
        steps.append(Run(("systemctl", "disable", "--now", half.unit)))
    steps += map(Remove, there)
    if there:
        steps.append(Run(_RELOAD))
        steps.append(Run(("systemctl", "reset-failed", half.unit), may_fail=True))
    if purge:
        steps += [*map(Remove, knows), RemoveEmpty(place.at(half.settings_file).parent)]
    drop_ins = place.at(half.drop_ins)
    kept = [*([] if purge else knows), *([drop_ins] if drop_ins.exists() else [])]
    return Plan(tuple(steps), bool(there or (purge and knows)), kept=tuple(kept))


def _taking_effect(half: Half, place: Place, files: dict[Path, str]) -> Iterator[Step]:
    """Yield what makes systemd know of the files; harmless again and again."""
    for kind, program in (
        ("sysusers", ("systemd-sysusers",)),
        ("tmpfiles", ("systemd-tmpfiles", "--create")),
    ):
        if conf_file(half, kind) in files:
            yield Run((*program, str(place.at(conf_file(half, kind)))))
    yield Run(_RELOAD)


def _conf_files(half: Half) -> list[Path]:
    return [conf_file(half, kind) for kind in ("sysusers", "tmpfiles")]


def _knowledge(half: Half, place: Place) -> Iterator[Path]:
    """Yield the places of what is the owner's: settings, secrets, state."""
    settings = place.at(half.settings_file)
    yield settings
    yield from (settings.parent / name for name in half.secrets)
    yield place.at(half.state_dir)


def _refuse_files_of_others(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_symlink():
            raise RefusedError(f"{path} is a link to {path.readlink()}: remove it first, if that is meant")
        text = _text(path)
        if text is not None and version_in(text) is None:
            raise RefusedError(
                f"{path} was not written by `gpu-agent service install`: move it away first; changes of your "
                "own belong into a drop-in (`systemctl edit`)"
            )


def _refuse_unreachable(program: Program, user: User, unit: str) -> None:
    found = closed((program.path, *program.parts), user, unit=unit)
    if found is not None:
        needs = "" if found.path == program.path else f", which {program.path} needs"
        raise RefusedError(
            f"the service's user {user.name} cannot get at {found.path}{needs}: closed to it is {found}. "
            "Install into an environment elsewhere, such as /opt/gpu-agent: `python3 -m venv /opt/gpu-agent` "
            "and `/opt/gpu-agent/bin/pip install gpu-agent`"
        )


def _text(path: Path) -> str | None:
    """Read a file; None where there is none. What is not text is none of ours."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
