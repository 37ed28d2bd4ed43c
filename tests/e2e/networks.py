"""Two machines with two cables between them, as network namespaces; root alone may make them."""

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

import pytest

needs_networks = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="only root may make network namespaces, with `ip` of iproute2",
)


class TwoCables:
    """A near and a far machine, while the block runs. Each cable leads through a switch of its own."""

    def __init__(self) -> None:
        self._near, self._far, self._switches = (f"t{os.getpid()}-{name}" for name in ("near", "far", "sw"))
        self.near, self.far = (("ip", "netns", "exec", name) for name in (self._near, self._far))
        """What stands before a command that runs on that machine."""

    def __enter__(self) -> Self:
        try:
            for machine in (self._near, self._far, self._switches):
                _ip("netns", "add", machine)
            for machine in (self._near, self._far):
                _ip("-n", machine, "link", "set", "lo", "up")
            for cable in (1, 2):
                self._lay(cable)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    @staticmethod
    def far_host(cable: int) -> str:
        """The far machine's address on a cable."""
        return f"10.213.{cable}.1"

    def cut(self, cable: int) -> None:
        """Cut it between the switch and the far machine: the near one's own port stays up."""
        _ip("-n", self._switches, "link", "set", f"far{cable}", "down")

    def _lay(self, cable: int) -> None:
        bridge = f"switch{cable}"
        _ip("-n", self._switches, "link", "add", bridge, "type", "bridge")
        _ip("-n", self._switches, "link", "set", bridge, "up")
        for machine, end, number in ((self._far, "far", 1), (self._near, "near", 2)):
            port, peer = f"eth{cable}", f"{end}{cable}"
            _ip("-n", machine, "link", "add", port, "type", "veth", "peer", peer, "netns", self._switches)
            _ip("-n", self._switches, "link", "set", peer, "master", bridge, "up")
            _ip("-n", machine, "address", "add", f"10.213.{cable}.{number}/24", "dev", port)
            _ip("-n", machine, "link", "set", port, "up")

    def _remove(self) -> None:
        for machine in (self._near, self._far, self._switches):
            subprocess.run(["ip", "netns", "delete", machine], check=False, capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
