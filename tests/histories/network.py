"""Machines in network namespaces of their own, and cuts between them.

The namespace of this process routes between the machines; a rule of its own routing drops the packets of a
cut. A user without privileges may do all of this in a user namespace, which `enter` makes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_ENTERED = "HISTORIES_NETWORK"
NO_NETWORK = "the programs unshare, nsenter and ip are missing: apt-get install -y util-linux iproute2"


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process runs."""

    address: str = "127.0.0.1"
    words: tuple[str, ...] = ()
    """They stand before its command."""


LOOPBACK = Host()


@dataclass(frozen=True, slots=True)
class Cut:
    """Hosts between which nothing arrives."""

    name: str
    pairs: Sequence[tuple[Host, Host]]

    @contextmanager
    def applied(self) -> Iterator[None]:
        directions = [
            (one.address, other.address) for pair in self.pairs for one, other in (pair, pair[::-1])
        ]
        with ExitStack() as undoing:
            for source, target in directions:
                rule = ("from", source, "to", target, "blackhole")
                _ip("rule", "add", *rule)
                undoing.callback(_ip, "rule", "del", *rule)
            yield


def enter(module: str, arguments: Sequence[str]) -> None:
    """Run the program again in a network namespace of its own, unless it is in one."""
    if os.environ.get(_ENTERED):
        _ip("link", "set", "lo", "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        return
    if any(shutil.which(name) is None for name in ("unshare", "nsenter", "ip")):
        sys.exit(NO_NETWORK)
    as_user = () if os.geteuid() == 0 else ("--user", "--map-current-user", "--keep-caps")
    words = ("unshare", *as_user, "--net", sys.executable, "-m", module, *arguments)
    os.execvpe(words[0], words, {**os.environ, _ENTERED: "1"})  # noqa: S606 - our own program


def add_host(number: int, running: ExitStack) -> Host:
    """Make a machine; it ends with `running`."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"], stdout=subprocess.PIPE
    )
    running.callback(holder.wait)
    running.callback(holder.kill)
    assert holder.stdout is not None
    with holder.stdout as lines:
        lines.readline()
    words = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")
    here, there = f"10.9.{number}.1", f"10.9.{number}.2"
    _ip("link", "add", f"host{number}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
    running.callback(_ip, "link", "del", f"host{number}")  # with its namespace it would end later
    _ip("addr", "add", f"{here}/30", "dev", f"host{number}")
    _ip("link", "set", f"host{number}", "up")
    for command in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{there}/30", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", here),
    ):
        subprocess.run([*words, "ip", *command], check=True)
    return Host(there, words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
