"""The packages of this checkout as `make packages` builds them, of this version and of a next one.

They are stored in `.cache/system/`, and built again when a file that packages are made of changes.
`python3 -m tests.system.packages` builds both versions. A build that fails fails the test: it is never
a reason to skip one.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.system.roots import CACHE, alone

ROOT = Path(__file__).parent.parent.parent
CURRENT = re.findall(r'"(.+)"', (ROOT / "agent/gpu_agent/version.py").read_text(encoding="utf-8"))[-1]
"""The version that this checkout states."""
NEXT = f"{CURRENT}.1"
"""A version that dpkg and rpm take for newer; the program in it is the same."""
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
BUILT_AT_SECONDS = 1_780_000_000
"""The time that the files in them have, so that two commits with the same files have the same packages."""

_MADE_OF = (
    *("Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "mkdocs.yml"),
    *("docs/**/*", "tools/site.py"),
    *("agent/**/*", "packaging/**/*", "systemd/*"),
)
_LONGEST_SECONDS = 600.0


def built(version: str = CURRENT) -> Path:
    """The folder with both halves, under that version; builds them when it has to.

    Of the current version there are .deb and .rpm, of others the .deb alone: only these are installed.
    """
    folder = CACHE / f"packages-{version}-{_fingerprint()}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with alone(CACHE / "packages.lock"):
        if not folder.exists():
            for older in CACHE.glob(f"packages-{version}-*"):
                shutil.rmtree(older)
            half_made = CACHE / "packages.half-made"
            shutil.rmtree(half_made, ignore_errors=True)
            make(version, half_made, only="" if version == CURRENT else "deb")
            half_made.rename(folder)
    return folder


def make(
    version: str, folder: Path, *, work: Path = CACHE / "packages.work", umask: int = 0o022, only: str = ""
) -> None:
    """Run `make packages` once more, whatever there is already; `work` takes what is made on the way."""
    variables = {
        "ARCH": ARCH,
        "RELEASE": version,
        "DIST": str(folder),
        "WORK": str(work),
        "ONLY": only,
        "VENV": sys.prefix,
    }
    # pytest may itself run under make, whose own words must not reach this one.
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "packages", *(f"{name}={value}" for name, value in variables.items())],
        cwd=ROOT,
        env={**outer, "SOURCE_DATE_EPOCH": str(BUILT_AT_SECONDS)},
        check=False,
        capture_output=True,
        text=True,
        umask=umask,
        timeout=_LONGEST_SECONDS,
    )
    assert done.returncode == 0, f"make packages ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def _fingerprint() -> str:
    """A digest of all files that packages are made of."""
    digest = hashlib.sha256(ARCH.encode())
    for path in _sources():
        digest.update(f"{path.relative_to(ROOT)} {path.stat().st_mode & 0o111:o}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:8]


def _sources() -> Iterator[Path]:
    for pattern in _MADE_OF:
        found = (path for path in ROOT.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)
        yield from sorted(found)


if __name__ == "__main__":
    for wanted in (CURRENT, NEXT):
        built(wanted)
