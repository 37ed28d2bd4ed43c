"""A Debian that is booted with its own systemd.

Its network is its own, with nothing in it but loopback: whatever is installed there is installed offline.
What it lacks of a true machine: a kernel of its own, and cgroup controllers where the host keeps them.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.system.enclosure import Enclosure

_OUR_JOURNAL = ("journalctl", "--no-pager", "--all", "--lines=50", "--unit=gpu-*")


class Machine(Enclosure):
    """One booted Debian, and what its systemd and its journal say.

    `granted` are options of nspawn's that let it do more than a container may.
    """

    def __init__(
        self,
        root: Path,
        scratch: Path,
        *,
        shared: Mapping[str, Path] | None = None,
        granted: tuple[str, ...] = (),
    ) -> None:
        words = ("--boot", "--private-network", *granted)
        super().__init__(root, scratch, *words, first="systemd", shared=shared)

    def has_started(self) -> bool:
        """True when all that starts at boot has started."""
        if not super().has_started():
            return False
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() == "running"

    def show(self, unit: str, name: str) -> str:
        """One property of a unit, as systemd has it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        """The process of a service as the machine numbers it; 0 when there is none."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """The journal's entries of a unit, with journald's own fields."""
        output = self.run("journalctl", "--output=json", "--no-pager", "--all", f"--unit={unit}").stdout
        return [json.loads(line) for line in output.splitlines()]

    def events(self, unit: str, event: str) -> list[dict[str, Any]]:
        """The lines of our own log, of one event, in the journal."""
        lines = [str(entry.get("MESSAGE")) for entry in self.journal(unit)]
        said = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in said if line["event"] == event]

    def messages(self, unit: str, containing: str) -> list[str]:
        """The journal's messages of a unit, systemd's own included, that contain this text."""
        texts = [str(entry["MESSAGE"]) for entry in self.journal(unit)]
        return [message for message in texts if containing in message]

    def wait_out(self, seconds: float) -> None:
        """Let time pass in which nothing must happen."""
        threading.Event().wait(seconds)

    def log_end(self) -> str:
        """The end of our units' journal; of the console before the machine has started."""
        if self.leader == 0:
            return super().log_end()
        done = self._entered(*_OUR_JOURNAL, within_seconds=30)
        return done.stdout[-12_000:] + done.stderr
