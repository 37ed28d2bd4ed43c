"""One gateway process on the leader's machine: it serves until its link ends; the leader starts another."""

import asyncio
import ctypes
import signal
import socket
import sys

from gpu_agent.runtime import logs
from gpu_agent.runtime.logs import Logger, set_level
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.server.collector import tune_the_collector
from gpu_agent.server.event_loop import loop_factory
from gpu_agent.server.gateway.gateway import SETTINGS, Gateway, GatewaySettings
from gpu_agent.server.gateway.link import Kind, Link, read_document
from gpu_agent.server.tls import Encryption

_PR_SET_PDEATHSIG = 1
"""prctl(2)"""
_LOG = Logger("server.gateway")


class GatewayProcess:
    """A gateway that listens at the address that its leader names, and its link to that leader."""

    def __init__(self) -> None:
        self.link = Link(self._received, self._link_lost, on_drained=self._go_on_reading)
        self.ended = asyncio.Event()
        """Set once the link has ended."""
        self._tasks: Tasks | None = None
        self._gateway: Gateway | None = None
        self._encryption: Encryption | None = None

    async def run(self, own: socket.socket) -> None:
        """Serve until the link ends, then close all connections."""
        async with Tasks() as tasks:
            self._tasks = tasks  # before the first frame, which may arrive at once
            await asyncio.get_running_loop().create_connection(lambda: self.link, sock=own)
            await self.ended.wait()
            if self._gateway is not None:
                await self._gateway.listener.stop()
            tasks.end()

    def _received(self, kind: Kind, number: int, payload: memoryview) -> None:
        if self._gateway is not None and self._gateway.received(kind, number, payload):
            return
        if self._tasks is None:
            return
        if kind is Kind.SETTINGS:
            self._tasks.start("gateway-listen", self._listen(SETTINGS.validate_json(bytes(payload))))
        elif kind is Kind.ADMIT and self._gateway is not None:
            self._tasks.start("gateway-admit", self._gateway.listener.admit())
        elif kind is Kind.RELOAD:
            set_level(read_document(payload)["log_level"])
            if self._encryption is not None:
                self._tasks.start("certificate-reload", self._reload(self._encryption))

    async def _listen(self, settings: GatewaySettings) -> None:
        set_level(settings.log_level)
        try:
            self._encryption = None if settings.tls is None else Encryption(settings.tls)
        except TlsFileError as error:
            self._give_up(str(error))
            return
        gateway = Gateway(settings.limits, settings.thresholds, encryption=self._encryption)
        try:
            await gateway.listener.listen(settings.node_listen, shared=True)
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        self._gateway = gateway
        tune_the_collector()
        gateway.attach(self.link)
        if self._tasks is not None:
            self._tasks.start("gateway-rows", gateway.send_rows())
            if self._encryption is not None:
                self._tasks.start("certificate", self._encryption.watch())

    def _give_up(self, problem: str) -> None:
        self.link.send(Kind.PROBLEM, 0, problem.encode())
        self.link.close()

    def _go_on_reading(self) -> None:
        if self._gateway is not None:
            self._gateway.go_on_reading()

    @staticmethod
    async def _reload(encryption: Encryption) -> None:
        await encryption.reload()

    def _link_lost(self, problem: str) -> None:
        _LOG.info("gateway_ending", problem=problem)
        self.ended.set()


def main() -> None:
    """Run one gateway on the link whose file descriptor is the only argument.

    Only the leader's end ends it: a signal to the whole process group must reach the leader first.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    _awake_at_the_leaders_end()
    own = socket.socket(fileno=int(sys.argv[1]))
    logs.configure()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(GatewayProcess().run(own))


def _awake_at_the_leaders_end() -> None:
    """Have the kernel wake this process when the leader is gone.

    A frozen one would not see its link end, and keep the nodes' port from the next leader.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
