"""A registry with TLS, tokens and an agent, watched by a real Prometheus, and the faults of such a registry.

The registry's certificate ends in five days when it starts; `play` injects everything else, waits for each
alert, ends the fault and waits for the end of its alert.
"""

import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import gpu_agent
from tests.e2e.encrypted import QUICK, Encrypted, EncryptedRegistry
from tests.e2e.watched_alerts import AGENT_SETTINGS, SHORTER, Alert, Prometheus, WatchedAlerts, job
from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, eventually, free_port
from tests.small_disk import Ballast, mounted
from tests.waiting import patience

SOON, LATER = 30.0, 60.0
"""How long an alert may take; and where a look every 30 s, or a window of 15 s, stands before it."""
_OF_REGISTRY = {"job": "gpu-registry"}
_EXPIRES = "the registry starts with a certificate that ends in 5 days"
_BREAKS = "NVIDIA: the driver breaks (library and module differ)"
_FULL = "the disk of an agent's state directory is full"
_SLOW = "another program keeps the registry's database locked for 1.5 s, again and again"
_FAULT = "a template of a page is gone under a registry that runs, and the page is opened once"
_NODES = "8 connections with a wrong join token"
_OPERATORS = "25 requests with a wrong operator token"
_DISK_KIB = 1024
_LOCK = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
while True:
    database.execute("BEGIN IMMEDIATE")
    time.sleep(1.5)
    database.execute("COMMIT")
    time.sleep(0.3)
"""
_INIT = ("nvmlInitWithFlags", "nvmlDeviceGetCount_v2")
"""Calls without which no process gets to the GPUs."""


class Guarded(WatchedAlerts):
    """The registry and its agent."""

    def __init__(self, folder: Path, running: ExitStack, shorter: int) -> None:
        self.encrypted = Encrypted(folder, running)
        self.encrypted.certify(self.encrypted.authority, to_days=5)
        self.encrypted.trust(self.encrypted.authority)
        package = Path(gpu_agent.__file__).parent
        self.package = Path(shutil.copytree(package, folder / "package" / package.name))
        """A copy, which the registry runs from."""
        self.database = folder / "registry.db"
        self.registry = running.enter_context(
            EncryptedRegistry(
                *(*QUICK, "--state-dir", str(self.encrypted.state), "--store", f"sqlite://{self.database}"),
                *("--tls-cert-file", str(self.encrypted.cert), "--tls-key-file", str(self.encrypted.key)),
                auth="on",
                environment={"PYTHONPATH": str(self.package.parent)},
            )
        )
        self.encrypted.make_join_token()
        self.token = (self.encrypted.state / "operator.token").read_text().strip()
        self.state = folder / "state"
        if os.geteuid() == 0:
            running.enter_context(mounted(self.state, kib=_DISK_KIB))
        self.fake, self.machine = FakeNvml(folder), f"127.0.0.1:{free_port()}"
        running.enter_context(self._agent(folder))
        self.encrypted.await_ready()
        tls = {"ca_file": str(self.encrypted.authority.file)}
        authorization = {"credentials_file": str(self.encrypted.state / "operator.token")}
        address = self.registry.api.removeprefix("https://")
        of_registry = job(
            "gpu-registry", address, scheme="https", tls_config=tls, authorization=authorization
        )
        prometheus = Prometheus(folder, of_registry, job("gpu-agent", self.machine), shorter=shorter)
        running.callback(prometheus.end)
        super().__init__(prometheus)

    def _agent(self, folder: Path) -> Agent:
        config = folder / "agent.toml"
        config.write_text(AGENT_SETTINGS.format(port=self.machine.rpartition(":")[2]), encoding="utf-8")
        return Agent(
            self.registry.node_url,
            self.state,
            *("--config", str(config), "--join-token-file", str(folder / "join.token")),
            *("--tls-ca-file", str(self.encrypted.known)),
            simulate=None,
            environment=self.fake.environment(),
        )

    def ask(self, path: str, *, token: str | None = None, body: bytes | None = None) -> int:
        """Return the status of its answer."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self.token}"}
        request = urllib.request.Request(self.registry.api + path, body, headers)  # noqa: S310 - ours
        trusting = self.encrypted.authority.trusting()
        try:
            with urllib.request.urlopen(request, timeout=patience(20), context=trusting) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code


@contextmanager
def guarded(folder: Path, *, shorter: int = SHORTER) -> Iterator[Guarded]:
    """Run both, until all is scraped."""
    with ExitStack() as running:
        fleet = Guarded(folder, running, shorter)
        fleet.inject(_EXPIRES, Alert("RegistryCertificateExpires", _OF_REGISTRY))
        eventually(
            lambda: len(fleet.prometheus.series("up == 1")) == 2, within_seconds=SOON, what="scrapes of both"
        )
        fleet.watch(within_seconds=SOON)
        yield fleet


def play(fleet: Guarded) -> None:
    """Inject each fault, wait for its alert, and for the end of both."""
    templates = fleet.package / "server" / "web" / "templates"
    fleet.inject(_BREAKS, Alert("GpuDriverBroken", {"instance": fleet.machine}), lambda: _break(fleet.fake))
    fill, clear = _full_disk(fleet.state)
    fleet.inject(_FULL, Alert("AgentCannotStoreItsIdentity", {"instance": fleet.machine}), fill)
    refused = {**_OF_REGISTRY, "reason": "unknown_token"}
    fleet.inject(_NODES, Alert("JoinTokensRefused", refused), lambda: _connect(fleet, times=8), lasts=False)
    fleet.inject(
        _OPERATORS, Alert("OperatorsRefused", _OF_REGISTRY), lambda: _guess(fleet, times=25), lasts=False
    )
    page, away = templates / "signin.html", templates / "signin.away"

    def open_page() -> None:
        page.rename(away)
        assert fleet.ask("/signin") == 500

    fleet.inject(_FAULT, Alert("RegistryFaults", _OF_REGISTRY), open_page, lasts=False)
    fleet.watch(_NODES, _OPERATORS, _FAULT, within_seconds=SOON)

    def fix_all(locked: ExitStack) -> None:
        away.rename(page)
        for call in _INIT:
            fleet.fake.unset("error", call)
        clear()
        fleet.encrypted.certify(fleet.encrypted.authority, to_days=90)
        locked.close()

    with ExitStack() as locked:
        fleet.inject(
            _SLOW, Alert("RegistryStoreSlow", _OF_REGISTRY), lambda: locked.enter_context(_locked(fleet))
        )
        fleet.watch(within_seconds=LATER)
        fleet.fix(*(one.fault for one in fleet.injected), end=lambda: fix_all(locked), within_seconds=LATER)


def _break(fake: FakeNvml) -> None:
    for call in _INIT:
        fake.set("error", call, "*", "LIB_RM_VERSION_MISMATCH")


def _full_disk(state: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """What takes all room from the state directory, or the right to write there, and what gives it back."""
    if os.geteuid() == 0:
        ballast = Ballast(state)
        return ballast.fill, ballast.throw_off
    return lambda: state.chmod(0o500), lambda: state.chmod(0o700)


def _connect(fleet: Guarded, *, times: int) -> None:
    headers = {"Authorization": f"Bearer {fleet.token[:-8]}notatoken"}
    for _ in range(times):
        with (
            suppress(InvalidStatus),
            connect(
                fleet.registry.node_url,
                ssl=fleet.encrypted.authority.trusting(),
                additional_headers=headers,
                proxy=None,
            ),
        ):
            raise AssertionError("a wrong token was accepted")


def _guess(fleet: Guarded, *, times: int) -> None:
    for number in range(times):
        assert fleet.ask("/v1/nodes", token=f"wrong-{number}") == 401


@contextmanager
def _locked(fleet: Guarded) -> Iterator[None]:
    """Lock the database again and again, while an operator makes tokens: each of them is a commit."""
    done = threading.Event()

    def make_tokens() -> None:
        while not done.is_set():
            with suppress(OSError):
                fleet.ask("/v1/tokens", body=b'{"kind": "join", "uses": 1}')

    making = threading.Thread(target=make_tokens)
    holder = subprocess.Popen([sys.executable, "-c", _LOCK, str(fleet.database)])
    try:
        making.start()
        yield
    finally:
        done.set()
        holder.kill()
        holder.wait()
        making.join()
