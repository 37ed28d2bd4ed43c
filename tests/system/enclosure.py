"""A root directory on which programs run in namespaces of their own, as in a container, and forgotten then.

It only starts, enters and ends it; the caller says which program is PID 1.
"""

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

from tests.children import called
from tests.system.cgroups import cgroup
from tests.waiting import patience

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]

_START_SECONDS = 60.0
_END_SECONDS = 20.0
_LOOK_EVERY_SECONDS = 0.1
_INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


class Enclosure:
    """What one systemd-nspawn runs; `shared` are folders of the host, by where the inside sees them.

    `words` are nspawn's further options and the command of PID 1, `first` is the name of that process.
    """

    def __init__(
        self, root: Path, scratch: Path, *words: str, first: str, shared: Mapping[str, Path] | None = None
    ) -> None:
        self._first = first
        self._console = scratch / "console.log"
        self.leader = 0
        self._holds = ExitStack()
        apart = self._holds.enter_context(cgroup())
        binds = [f"--bind={folder}:{place}" for place, folder in (shared or {}).items()]
        with self._console.open("w", encoding="utf-8") as console:
            self._nspawn = subprocess.Popen(
                [
                    *("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(apart)),
                    # A test process that is killed leaves nothing running behind.
                    *("setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--quiet", "--register=no"),
                    *("--keep-unit", "--volatile=overlay", "--console=pipe", "-D", str(root)),
                    *(f"--machine=gpu-{secrets.token_hex(4)}", *binds, *words),
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def run(self, *words: str, check: bool = True, within_seconds: float = 60) -> Done:
        """Run a command there as root, and wait for its end."""
        done = self._entered(*words, within_seconds=within_seconds)
        if check and done.returncode != 0:
            output = f"{done.stdout}{done.stderr}\n{self.log_end()}"
            raise AssertionError(f"{words} ended with {done.returncode}:\n{output}")
        return done

    def path(self, path: str) -> Path:
        """Where the host sees a file of the inside; links in it lead where they lead on the host."""
        return Path(f"/proc/{self.leader}/root") / path.removeprefix("/")

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file there, owned by root; its folder is made when it is not there."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=mode)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def until(self, look: Callable[[], T | None], *, within_seconds: float, what: str) -> T:
        """Look until there is something to see; when the time is over, fail with the end of the log."""
        deadline = time.monotonic() + within_seconds
        while True:
            seen = look()
            if seen:
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_seconds} s: {what}\n{self.log_end()}")
            threading.Event().wait(_LOOK_EVERY_SECONDS)

    def wait(self, within_seconds: float) -> int:
        """Wait for the end of PID 1; its exit code."""
        return self._nspawn.wait(within_seconds)

    def console(self) -> str:
        """All that PID 1 wrote to its standard streams."""
        return self._console.read_text(encoding="utf-8", errors="replace")

    def log_end(self) -> str:
        """The end of the console's output, for the text of a failure."""
        return self.console()[-8000:]

    def has_started(self) -> bool:
        """True when PID 1 is the process that it should be."""
        if self._nspawn.poll() is not None:
            raise AssertionError(f"it ended with {self._nspawn.returncode}:\n{self.console()}")
        # Before it is called so, a child of nspawn may still be in the host's namespaces.
        first = called(self._first, psutil.Process(self._nspawn.pid).children())
        self.leader = 0 if first is None else first.pid
        return self.leader != 0

    def _entered(self, *words: str, within_seconds: float) -> Done:
        return subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "--", *words],
            check=False,
            capture_output=True,
            text=True,
            env=_INSIDE,
            stdin=subprocess.DEVNULL,
            timeout=within_seconds,
        )

    def __enter__(self) -> Self:
        try:
            self.until(self.has_started, within_seconds=_START_SECONDS, what=f"{self._first} as PID 1")
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
            self._nspawn.send_signal(signal.SIGTERM)  # which it hands on as an orderly shutdown
        try:
            self._nspawn.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(patience(5))
        finally:
            self._holds.close()
