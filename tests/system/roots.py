"""Root directories of Debian releases, made once by debootstrap and stored in `.cache/system/`.

A root that exists is complete: it is made under another name and moved into place. Nothing writes to it
afterwards; a test that changes something works on a copy. `python3 -m tests.system.roots` makes all of them.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.system.cgroups import can_make
from tests.waiting import patience

CACHE = Path(__file__).parent.parent.parent / ".cache" / "system"
MIRROR = "http://deb.debian.org/debian"
SUITES = ("bookworm", "trixie")
"""Debian 12 with Python 3.11 and systemd 252, Debian 13 with Python 3.13 and systemd 257."""

_PACKAGES = ("systemd-sysv", "python3-venv", "python3-pydantic")
_PROGRAMS = ("debootstrap", "systemd-nspawn", "nsenter", "setpriv", "unshare")
_LONGEST_SECONDS = 600.0
_WITH_US = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""A run that is killed takes all that it started along, and what that mounted."""


class NoRootError(Exception):
    """The machine cannot make or boot such a root; the sentence says why."""


def why_not() -> str | None:
    """Why this machine can boot no Debian, as a sentence, or None when it can."""
    if not sys.platform.startswith("linux"):
        return "only Linux boots systemd in a namespace"
    if os.geteuid() != 0:
        return "only root can boot systemd in a namespace: run these tests as root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"missing here: {', '.join(missing)} (apt-get install -y debootstrap systemd-container)"
    return _what_the_kernel_refuses()


def _what_the_kernel_refuses() -> str | None:
    if "\toverlay\n" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        return "this kernel has no overlay file system"
    apart = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "true")
    if subprocess.run(apart, check=False, capture_output=True, timeout=patience(30)).returncode != 0:
        return "namespaces of its own are not allowed to this process"
    if not can_make():
        return "cgroups of its own are not allowed to this process"
    return None


def debian(suite: str, *more: str) -> Path:
    """The root of a release, with `more` packages; makes it when there is none. Raises `NoRootError`."""
    packages = (*_PACKAGES, *more)
    recipe = hashlib.sha256(" ".join((MIRROR, *packages)).encode()).hexdigest()[:8]
    root = CACHE / f"{suite}-{recipe}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with alone(CACHE / f"{suite}.lock"):
        if not root.exists():
            _make(suite, root, packages)
    return root


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process makes what `lock` stands for."""
    with lock.open("w", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _make(suite: str, root: Path, packages: Sequence[str]) -> None:
    for leftover in CACHE.glob(f"{suite}-*.half-made"):
        shutil.rmtree(leftover, ignore_errors=True)
    # Not the name that it had before: what a killed run started may not have ended yet.
    half_made = root.with_name(f"{root.name}.{secrets.token_hex(4)}.half-made")
    command = ("debootstrap", "--variant=minbase", f"--include={','.join(packages)}")
    words = [*_WITH_US, *command, suite, str(half_made), MIRROR]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=_LONGEST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NoRootError(f"debootstrap made no {suite} within {_LONGEST_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise NoRootError(f"debootstrap made no {suite}: {(done.stdout + done.stderr)[-500:]}")
    half_made.rename(root)


if __name__ == "__main__":
    obstacle = why_not()
    if obstacle is not None:
        sys.exit(f"no root of Debian is made: {obstacle}")
    with ThreadPoolExecutor() as pool:
        list(pool.map(debian, SUITES))
