"""The files that make a component a systemd service: where each lies on a machine, and its text.

The text is that of `systemd/`, which the packages use too; only the program's path and a first line that
names the writer are added. Nothing is written here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gpu_agent

MARK = "# Written by `gpu-agent service install`"
"""How the first line begins of every file that is ours to replace and to remove."""
_PACKAGED_PROGRAM = "/usr/bin/gpu-agent"
_EXEC = re.compile(rf"(?m)^(Exec[A-Za-z]+=[-@:+!]*){re.escape(_PACKAGED_PROGRAM)}(?=\s)")
_VERSION = re.compile(rf"{re.escape(MARK)} of version (\S+)\.\n")
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f\"'\\]")


@dataclass(frozen=True, slots=True)
class Component:
    """One half of the program as a service."""

    name: str
    """`agent` or `registry`."""
    secrets: tuple[str, ...] = ()
    """What else its owner puts beside its settings."""

    @property
    def service(self) -> str:
        """The service's name, which is also its package's, its user's and its state directory's."""
        return f"gpu-{self.name}"

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"{self.service}.service"

    @property
    def unit_file(self) -> Path:
        """Where an administrator's unit lies, from the root."""
        return Path("etc/systemd/system") / self.unit

    @property
    def packaged_unit_files(self) -> tuple[Path, ...]:
        """Where a package's unit lies."""
        return tuple(Path(folder) / self.unit for folder in ("usr/lib/systemd/system", "lib/systemd/system"))

    @property
    def drop_ins(self) -> Path:
        """Where the owner's changes to the unit lie."""
        return Path("etc/systemd/system") / f"{self.unit}.d"

    @property
    def settings_file(self) -> Path:
        """Where its settings lie."""
        return Path("etc/gpu-agent") / f"{self.name}.toml"

    @property
    def state_dir(self) -> Path:
        """Where it keeps what must not be lost."""
        return Path("var/lib") / self.service


COMPONENTS: Mapping[str, Component] = {
    "agent": Component("agent", ("join-token",)),
    "registry": Component("registry"),
}


class UnwritablePathError(ValueError):
    """The program's path cannot stand in a unit: a sentence with the next step."""


def shipped_units() -> Path:
    """Find the folder `systemd/`: inside the package, or beside it in a checkout."""
    package = Path(gpu_agent.__file__).parent
    inside = package / "systemd"
    return inside if inside.is_dir() else package.parents[1] / "systemd"


def unit_files(component: Component, program: Path, version: str, *, source: Path) -> dict[Path, str]:
    """Name, from the root, each file that systemd needs of one half, with its text.

    Raises `UnwritablePathError`.
    """
    head = (
        f"{MARK} of version {version}.\n"
        "# The next install replaces it, and `gpu-agent service uninstall` removes it. Changes of your own\n"
        f"# belong into a drop-in (`systemctl edit {component.service}`), which stays.\n"
    )
    unit = (source / component.unit).read_text(encoding="utf-8")
    quoted = quoted_program(program)
    files = {component.unit_file: head + _EXEC.sub(lambda found: found[1] + quoted, unit)}
    for kind in ("sysusers", "tmpfiles"):
        of_kind = source / f"{component.service}.{kind}.conf"
        if of_kind.is_file():
            files[conf_file(component, kind)] = head + of_kind.read_text(encoding="utf-8")
    return files


def conf_file(component: Component, kind: str) -> Path:
    """Where the administrator's file of that kind lies: `sysusers` or `tmpfiles`."""
    return Path("etc") / f"{kind}.d" / f"{component.service}.conf"


def example_settings(component: Component, *, source: Path) -> str:
    """The settings to begin with."""
    return (source / f"{component.name}.toml.example").read_text(encoding="utf-8")


def written_by_version(text: str) -> str | None:
    """Say which version wrote a file; None for one that is not ours."""
    found = _VERSION.match(text)
    return found[1] if found else None


def quoted_program(program: Path) -> str:
    """Write a path as the first word of a unit's command. Raises `UnwritablePathError`."""
    written = str(program)
    if _UNSPEAKABLE.search(written):
        raise UnwritablePathError(
            f"{written!r} holds a quote, a backslash or a character that cannot be seen, which no unit can "
            "name: make the environment elsewhere, such as in /opt/gpu-agent"
        )
    escaped = written.replace("%", "%%")
    return f'"{escaped}"' if re.search(r"\s", escaped) else escaped
