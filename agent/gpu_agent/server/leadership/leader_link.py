"""A gateway's link to the leader of another machine, or of its own."""

import asyncio
import ssl
import time
from collections.abc import Callable

from gpu_agent.runtime.logs import Logger
from gpu_agent.server.gateway.gateway import SETTINGS, Gateway
from gpu_agent.server.gateway.instance_links import LINK_VERSION, Instance
from gpu_agent.server.gateway.link import Kind, Link, read_wall_time

LEADER_SILENT_SECONDS = 5.0
"""A leader says something every second."""
_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 0.2

_LOG = Logger("server.leadership")


class LeaderLink:
    """One link to one leader."""

    def __init__(self, gateway: Gateway, leader: Instance, *, name: str, tls: ssl.SSLContext | None) -> None:
        self.is_linked = False
        """Whether the leader has taken this gateway."""
        self.clocks_apart_seconds = 0.0
        """How far the leader's wall clock is from this machine's."""
        self._gateway, self._leader, self._name, self._tls = gateway, leader, name, tls
        self._link = Link(self._received, self._lost, on_drained=gateway.go_on_reading)
        self._ended = asyncio.Event()
        self._heard_at = time.monotonic()
        self._problem = ""

    async def hold(self, is_current: Callable[[], bool]) -> bool:
        """Link to the leader until the link ends, or it leads no more; returns whether it took us."""
        at = self._leader.link
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: self._link,
                    at.bound_host,
                    at.port,
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else at.host,
                )
        except (OSError, TimeoutError) as error:
            self._problem = str(error) or "no answer in time"
            return False
        self._link.send_document(Kind.HELLO, 0, {"name": self._name, "version": LINK_VERSION})
        was_linked = False
        while not self._ended.is_set():
            was_linked |= self.is_linked
            if not is_current():
                self._link.end("another instance leads")
            elif time.monotonic() - self._heard_at > LEADER_SILENT_SECONDS:
                self._link.end(f"the leader has said nothing for {LEADER_SILENT_SECONDS:g} s")
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                pass
        return was_linked

    def _received(self, kind: Kind, number: int, payload: memoryview) -> None:
        self._heard_at = time.monotonic()
        if self._gateway.received(kind, number, payload):
            return
        if kind is Kind.SETTINGS:
            self._gateway.judge_by(SETTINGS.validate_json(bytes(payload)).thresholds)
            self._gateway.attach(self._link)
            self._link.send(Kind.LISTENING)
            self.is_linked = True
            _LOG.info("leader_linked", leader=self._leader.name, nodes=self._gateway.connections.size)
        elif kind is Kind.ALIVE:
            self.clocks_apart_seconds = abs(time.time() - read_wall_time(payload))
        elif kind is Kind.PROBLEM:
            self._problem = str(payload, "utf-8")

    def _lost(self, problem: str) -> None:
        self._ended.set()
        if self.is_linked:
            self.is_linked = False
            self._gateway.detach()
            _LOG.warning("leader_lost", leader=self._leader.name, problem=self._problem or problem)
