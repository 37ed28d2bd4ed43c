"""The gateway processes that a leader starts on its own machine.

When one ends, its connections are lost, as if their sockets had closed, and another one is started.
"""

import asyncio
import errno
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from gpu_agent.runtime.address import Address, bound_address
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread, start_alone
from gpu_agent.server.gateway.gateway import SETTINGS, GatewaySettings
from gpu_agent.server.gateway.link import Kind, Link
from gpu_agent.server.gateway.links import SILENT_SECONDS, WATCH_SECONDS, GatewayLinks, LinkedGateway
from gpu_agent.server.views import Clock
from gpu_agent.wire.api import MemberRole, MemberView

START_SECONDS = 20.0
"""A gateway that does not listen within this time is ended."""
RESTART_SECONDS = 1.0
"""The pause between the end of a gateway and the start of the next one."""
_END_SECONDS = 2.0

_LOG = Logger("server.gateway")


@dataclass(eq=False, kw_only=True)
class _Gateway(LinkedGateway):
    """One gateway process."""

    process: subprocess.Popen[bytes]
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it listens, or has ended."""
    problem: str = ""
    """Why it ended."""


class Gateways:
    """The nodes' port, served by `count` processes."""

    def __init__(self, links: GatewayLinks, settings: GatewaySettings, count: int) -> None:
        self.connections = links.connections
        self._links, self._settings, self._count = links, settings, count
        self._gateways: list[_Gateway] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        """Every process that was started and not reaped."""
        self._port: socket.socket | None = None
        """A bound socket without a server: it reserves the address between two gateways."""
        self._restarts: set[asyncio.Task[None]] = set()
        self._admitting = self._running = False
        self._watching: asyncio.TimerHandle | None = None

    @property
    def closed_reason(self) -> str | None:
        """Why a new node is refused, as the end of a sentence; None while nodes may connect."""
        if not self._admitting:
            return "is starting or stopping"
        listens = any(one.listening_since is not None for one in self._gateways)
        return None if listens else "waits for its gateways"

    async def listen(self, address: Address) -> Address:
        """Reserve the port, and start the gateways; raises `OSError`."""
        address.bind().close()  # fails where another registry, which may share its port too, has it
        self._port = _reserved(address)
        at = bound_address(self._port)
        self._settings = replace(self._settings, node_listen=at)
        try:
            for place in range(1, self._count + 1):
                await self._start(f"gateway-{place}")
            started = tuple(self._gateways)
            async with asyncio.timeout(START_SECONDS):
                for gateway in started:
                    await gateway.settled.wait()
        except OSError as error:  # a timeout is one too
            await self.stop()
            if isinstance(error, TimeoutError):
                problem = f"its gateways do not listen within {START_SECONDS:g} s"
                raise OSError(errno.ETIMEDOUT, problem) from None
            raise
        failed = next((one for one in started if one.problem), None)
        if failed is not None:
            await self.stop()
            raise OSError(errno.EIO, f"{failed.name} does not listen: {failed.problem}")
        self._running = True
        self._watch(time.monotonic())
        return at

    async def admit(self) -> None:
        """Accept node connections from now on."""
        self._admitting = True
        for gateway in self._gateways:
            if gateway.listening_since is not None:  # any other is told once it listens
                gateway.link.send(Kind.ADMIT)

    async def stop(self) -> None:
        """Have the gateways close their connections and end; those that do not are killed."""
        self._admitting = self._running = False
        if self._watching is not None:
            self._watching.cancel()
        for task in self._restarts:
            task.cancel()
        for gateway in tuple(self._gateways):
            gateway.link.close()
        await in_thread("gateways", lambda: _await_all(self._processes), deadline_seconds=None)
        if self._port is not None:
            self._port.close()
        self.connections.log_limit.stop()

    def members(self, clock: Clock) -> tuple[MemberView, ...]:
        """Return the gateways that listen, by name."""
        listening = sorted(
            (one for one in self._gateways if one.listening_since is not None), key=lambda one: one.name
        )
        return tuple(
            MemberView(
                name=one.name,
                role=MemberRole.GATEWAY,
                since=clock.wall_at(one.listening_since or 0.0),
                nodes=len(one.connections),
            )
            for one in listening
        )

    def reload(self, log_level: str) -> None:
        """Have the gateways read the certificate's files again, and log from this level on."""
        self._settings = replace(self._settings, log_level=log_level)
        for gateway in self._gateways:
            gateway.link.send_document(Kind.RELOAD, 0, {"log_level": log_level})

    # One gateway.

    async def _start(self, name: str) -> None:
        ours, process = _start_process()
        self._processes.append(process)
        gateway = _Gateway(name=name, process=process, heard_at=time.monotonic())
        gateway.link = Link(partial(self._received, gateway), partial(self._link_lost, gateway))
        await asyncio.get_running_loop().create_connection(lambda: gateway.link, sock=ours)
        self._gateways.append(gateway)
        gateway.link.send(Kind.SETTINGS, 0, SETTINGS.dump_json(self._settings))

    def _link_lost(self, gateway: _Gateway, problem: str) -> None:
        """Treat its connections as lost, and start another gateway."""
        gateway.problem = gateway.problem or problem
        gateway.settled.set()
        self._gateways.remove(gateway)
        self._links.drop(gateway)
        gateway.process.kill()
        if self._running:
            _LOG.error("gateway_lost", gateway=gateway.name, pid=gateway.process.pid, problem=gateway.problem)
            task = start_alone(f"restart-{gateway.name}", self._restart(gateway))
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)

    def _watch(self, planned_at: float) -> None:
        """End a gateway that no longer sends: it hangs, with its nodes' connections."""
        now = time.monotonic()
        for gateway in tuple(self._gateways):
            if now - planned_at > WATCH_SECONDS:  # we stood still ourselves: what they said waits
                gateway.heard_at = now
            limit = START_SECONDS if gateway.listening_since is None else SILENT_SECONDS
            if now - gateway.heard_at > limit:
                gateway.problem = f"it has said nothing for {limit:g} s"
                gateway.link.end(gateway.problem)
        self._watching = asyncio.get_running_loop().call_later(
            WATCH_SECONDS, self._watch, now + WATCH_SECONDS
        )

    async def _restart(self, gateway: _Gateway) -> None:
        await in_thread("gateway", gateway.process.wait, deadline_seconds=None)
        self._processes.remove(gateway.process)
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            try:
                await self._start(gateway.name)
            except OSError as error:
                _LOG.error("gateway_not_started", gateway=gateway.name, problem=error.strerror or str(error))
            else:
                return

    def _received(  # noqa: PLR0917 - as a link calls it
        self, gateway: _Gateway, kind: Kind, local: int, payload: memoryview
    ) -> None:
        if self._links.received(gateway, kind, local, payload):
            return
        if kind is Kind.LISTENING:
            gateway.listening_since = time.monotonic()
            gateway.settled.set()
            if self._admitting:
                gateway.link.send(Kind.ADMIT)
            _LOG.info("gateway_listening", gateway=gateway.name, pid=gateway.process.pid)
        elif kind is Kind.PROBLEM:
            gateway.problem = str(payload, "utf-8")
        else:
            gateway.link.end(f"it sent a frame of kind {kind.name}; this is a bug, please report it")


def _start_process() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a gateway process; returns our end of its link."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = (sys.executable, "-P", "-m", "gpu_agent.server.gateway", str(theirs.fileno()))
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
        )
    return ours, process


def _reserved(address: Address) -> socket.socket:
    """Bind an address that the gateways share, without serving it."""
    reserved = socket.socket(address.family)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((address.bound_host, address.port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # else any program may bind it too
    except OSError:
        reserved.close()
        raise
    return reserved


def _await_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
