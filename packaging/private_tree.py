"""The private library tree: all that the programs import, so that an install needs no network.

One tree serves every Python: what is compiled bears in its name which one it is for, and each takes its own.
It resolves nothing: versions and hashes stand in `pins/`. It refuses what is not a wheel, so that nothing of
what is downloaded runs here, and wheels that would need different files under one name.
"""

import filecmp
import fnmatch
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""For which compiled parts are brought along; the launcher names the first and the last."""

PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
"""Debian's name of an architecture, and which wheels run on it from glibc 2.28 on."""

_PINS = Path(__file__).parent / "pins"
_UV = Path(sys.executable).with_name("uv")
_INSTALLER_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")
"""pip's notes for an uninstall; here dpkg and rpm do that, and the notes contain paths of this machine."""
_SOURCES = ("*.c", "*.pxd", "*.pyi", "*.pyx")
_LEFT_OUT = (*_SOURCES, "__pycache__", ".agents", ".lock", "bin", "example.py", *_INSTALLER_NOTES)
"""What no program loads: sources of compiled parts, declarations for editors, the libraries' commands."""
_OF_ITS_WHEEL = ("WHEEL", "*.cyclonedx.json")
"""What describes one Python's wheel; the oldest Python's stands for all."""


def lay(place: Path, pins: str, *, arch: str, work: Path) -> None:
    """Put the packages that `pins` names into `place`, with their compiled parts for every Python."""
    for python in PYTHONS:
        found = work / f"{pins}-{python}"
        wanted = ["--requirement", str(_PINS / f"{pins}.txt"), "--require-hashes"]
        _install(found, wanted, arch=arch, python=python)
        _add(found, place)


def lay_program(place: Path, source: Path, *, arch: str, work: Path) -> None:
    """Build the program's own wheel and put it beside its libraries."""
    wheels = work / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    _run("build", "--wheel", "--out-dir", str(wheels), str(source))
    found = work / "program"
    _install(found, [str(next(wheels.glob("*.whl")))], arch=arch, python=PYTHONS[0])
    _add(found, place)


def _install(target: Path, what: Iterable[str], *, arch: str, python: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    _run(
        *("pip", "install", "--target", str(target), "--python", sys.executable),
        *("--python-version", python, "--python-platform", PLATFORMS[arch]),
        *("--only-binary", ":all:", "--no-deps", "--link-mode", "copy", *what),
    )


def _run(*words: str) -> None:
    """Run uv, which by itself trusts authorities of its own and not those of the machine."""
    trusting = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}  # by its name now, and before
    subprocess.run([str(_UV), "--quiet", "--no-config", *words], check=True, env=trusting)


def _add(found: Path, place: Path) -> None:
    for source in sorted(path for path in found.rglob("*") if path.is_file() and not _left_out(path, found)):
        target = place / source.relative_to(found)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        elif not _like(source.name, _OF_ITS_WHEEL) and not filecmp.cmp(source, target, shallow=False):
            raise ValueError(f"{target} differs from one Python to another: one tree cannot hold both")


def _left_out(path: Path, root: Path) -> bool:
    return any(_like(part, _LEFT_OUT) for part in path.relative_to(root).parts)


def _like(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
