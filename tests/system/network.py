"""A network between booted machines: a switch of their own, with nothing else on it."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.system.machine import Machine


@contextmanager
def network(machines: Mapping[int, Machine]) -> Iterator[None]:
    """Join them by a switch, as 10.0.0.NUMBER; what is in their namespaces goes with them."""
    switch = f"gpu{os.getpid()}"
    _ip("link", "add", switch, "type", "bridge")
    try:
        _ip("link", "set", switch, "up")
        for number, machine in machines.items():
            port = f"{switch}-{number}"
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(machine.leader))
            _ip("link", "set", port, "master", switch, "up")
            inside = ("nsenter", "-t", str(machine.leader), "-n", "ip")
            for words in (
                ("address", "add", f"10.0.0.{number}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                subprocess.run([*inside, *words], check=True, capture_output=True)
        yield
    finally:
        _ip("link", "delete", switch)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
