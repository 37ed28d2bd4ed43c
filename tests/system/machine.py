"""A Debian that is booted with its own systemd, on a copy of a root that is forgotten when the machine ends.

Its network is its own, with nothing in it but loopback: whatever is installed there is installed offline.
What it lacks of a true machine: a kernel of its own, and cgroup controllers where the host keeps them.
"""

import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

T = TypeVar("T")

_BOOT_SECONDS = 60.0
_SHUTDOWN_SECONDS = 20.0
_LOOK_EVERY_SECONDS = 0.1
_OUR_JOURNAL = ("journalctl", "--no-pager", "--all", "--lines=50", "--unit=gpu-*")
_INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


class Machine:
    """One booted Debian; `shared` are folders of the host that it sees, by where it sees them."""

    def __init__(self, root: Path, scratch: Path, *, shared: Mapping[str, Path] | None = None) -> None:
        self._console = scratch / "console.log"
        self._leader = 0
        binds = [f"--bind={folder}:{place}" for place, folder in (shared or {}).items()]
        with self._console.open("w", encoding="utf-8") as console:
            self._nspawn = subprocess.Popen(
                [
                    # A test process that is killed leaves no machine behind.
                    *("setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--quiet", "--boot"),
                    *("--register=no", "--keep-unit", "--private-network", "--volatile=overlay"),
                    *("--console=pipe", f"--machine=gpu-{secrets.token_hex(4)}", *binds, "-D", str(root)),
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def run(
        self, *words: str, check: bool = True, within_seconds: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command there as root, and wait for its end."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "--", *words],
            check=False,
            capture_output=True,
            text=True,
            env=_INSIDE,
            stdin=subprocess.DEVNULL,
            timeout=within_seconds,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}\n{self.story()}"
            )
        return done

    def path(self, path: str) -> Path:
        """Where the host sees a file of the machine."""
        return Path(f"/proc/{self._leader}/root") / path.removeprefix("/")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file there, owned by root; its folder is made when it is not there."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=mode)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit, as systemd has it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        """The process of a service as the machine numbers it; 0 when there is none."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """What the journal holds of a unit, entry by entry with journald's own fields."""
        told = self.run("journalctl", "--output=json", "--no-pager", "--all", f"--unit={unit}").stdout
        return [json.loads(line) for line in told.splitlines()]

    def events(self, unit: str, event: str) -> list[dict[str, Any]]:
        """The lines of our own log, of one event, in the journal."""
        lines = [str(entry.get("MESSAGE")) for entry in self.journal(unit)]
        said = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in said if line["event"] == event]

    def until(self, look: Callable[[], T | None], *, within_seconds: float, what: str) -> T:
        """Look until there is something to see; when the time is over, fail with the journal's end."""
        deadline = time.monotonic() + within_seconds
        while True:
            seen = look()
            if seen:
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_seconds} s: {what}\n{self.story()}")
            threading.Event().wait(_LOOK_EVERY_SECONDS)

    def story(self) -> str:
        """The last that the machine told of our units, or its console, for whoever reads a failure."""
        if self._leader == 0:
            return self._console.read_text(encoding="utf-8", errors="replace")[-4000:]
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "--", *_OUR_JOURNAL],
            check=False,
            capture_output=True,
            text=True,
            env=_INSIDE,
            timeout=30,
        )
        return done.stdout[-12_000:] + done.stderr

    def _booted(self) -> bool:
        if self._nspawn.poll() is not None:
            raise AssertionError(f"the machine ended with {self._nspawn.returncode}:\n{self.story()}")
        # Before it is called so, the child of nspawn still is in the host's namespaces.
        started = [
            child for child in psutil.Process(self._nspawn.pid).children() if child.name() == "systemd"
        ]
        if not started:
            return False
        self._leader = started[0].pid
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() == "running"

    def __enter__(self) -> Self:
        try:
            self.until(self._booted, within_seconds=_BOOT_SECONDS, what="a machine that is running")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)  # which nspawn hands on as an orderly shutdown
        try:
            self._nspawn.wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(5)
