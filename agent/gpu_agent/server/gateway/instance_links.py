"""The links between instances: a leader accepts them, every instance has one to the leader, itself included.

A link is a TCP connection. With TLS both sides show a certificate of the instances' own authority; in any
case they prove to each other the secret that instances have from etcd, so that no other program of this
machine passes for one. A link belongs to one term: when etcd names another leader the gateway ends the link,
and what the earlier leader still sends is lost with it.
"""

import asyncio
import hmac
import secrets
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gpu_agent.runtime.address import BACKLOG, Address, bound_address
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.gateway.gateway import SETTINGS, GatewaySettings
from gpu_agent.server.gateway.link import Kind, Link, pack_alive, proof, read_document, unpack_lag
from gpu_agent.server.gateway.links import SILENT_SECONDS, WATCH_SECONDS, GatewayLinks, LinkedGateway
from gpu_agent.wire.api import MemberRole, MemberView

LINK_VERSION = 1
"""The newest version of the link protocol that this release speaks; it speaks the one before, too. A gateway
names both, and a link has the newest one that both ends speak: instances are upgraded one by one."""
_HELLO_SECONDS = 5.0
_MOST_HELLO_BYTES = 4096
"""The longest frame from a peer that is not authenticated yet."""
_NONCE_BYTES = 16

_LOG = Logger("server.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The description of an instance in etcd."""

    name: str
    since: float
    """Unix seconds."""
    link: Address
    """Where it accepts links while it leads."""
    api: str
    """The URL of its operators' API."""
    pin: str | None = None
    """Of the API's key; None without TLS."""
    auth_on: bool = True
    """Whether it asks nodes and operators for tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """One term of leading."""

    name: str
    term: int
    since: float
    """Unix seconds."""
    link_listen: Address
    tls: ssl.SSLContext | None
    """Of the port for links."""
    secret: str = field(repr=False)
    """The instances read it in etcd, and prove to each other that they have it."""
    instances: Callable[[], Sequence[Instance]]
    """Returns those that etcd names, this one included."""
    revision: Callable[[], int]
    """Returns the revision of etcd after the last commit."""
    lasts: Callable[[], bool]
    """Returns whether its lease is valid: without it nothing is decided any more."""


class InstanceLinks:
    """The nodes' port of a leader: the gateways of all instances, as they link to it."""

    def __init__(self, links: GatewayLinks, settings: GatewaySettings, lead: Lead) -> None:
        self.connections = links.connections
        self._links, self._settings, self._lead = links, settings, lead
        self._gateways: dict[str, LinkedGateway] = {}
        self._unnamed: dict[Link, asyncio.TimerHandle] = {}
        """Links whose peer is not authenticated yet."""
        self._challenged: dict[Link, tuple[str, str]] = {}
        """The name that each of them claims, and the nonce that it must answer."""
        self._server: asyncio.Server | None = None
        self._admitting = False
        self._watching: asyncio.TimerHandle | None = None

    @property
    def closed_reason(self) -> str | None:
        """Why no node may register, as the end of a sentence; None while they may."""
        if not self._admitting:
            return "is starting or stopping"
        return None if self._gateways else "waits for its gateways"

    async def listen(self, _node_listen: Address) -> Address:
        """Open the port for links, which nothing serves before `admit`; raises `OSError`."""
        listener = self._lead.link_listen.bind()
        tls = self._lead.tls
        self._server = await asyncio.get_running_loop().create_server(
            self._linked,
            sock=listener,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else _HELLO_SECONDS,
            backlog=BACKLOG,
            start_serving=False,
        )
        return bound_address(listener)

    async def admit(self) -> None:
        """Accept links from now on."""
        if self._server is None:
            raise RuntimeError("there is no port: await listen() first")
        self._admitting = True
        await self._server.start_serving()
        self._watch(time.monotonic())

    async def stop(self) -> None:
        """End all links; the gateways hold their node connections for the next leader."""
        self._admitting = False
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            self._server.close()
        for gateway in self._gateways.values():
            gateway.link.send(Kind.PROBLEM, 0, b"this instance leads no more")
        for link in (*self._unnamed, *(one.link for one in self._gateways.values())):
            link.close()
        await asyncio.sleep(0)
        self.connections.log_limit.stop()

    def members(self) -> tuple[MemberView, ...]:
        """Return all instances, the leader first, then by name."""
        lead = self._lead
        views = []
        for one in self._lead.instances():
            leads, gateway = one.name == lead.name, self._gateways.get(one.name)
            views.append(
                MemberView(
                    name=one.name,
                    role=MemberRole.LEADER if leads else MemberRole.STANDBY,
                    url=one.api,
                    term=lead.term if leads else None,
                    since=lead.since if leads else one.since,
                    nodes=0 if gateway is None else len(gateway.connections),
                    lag_seconds=None if leads or gateway is None else gateway.lag_seconds,
                )
            )
        return tuple(sorted(views, key=lambda one: (one.role != MemberRole.LEADER, one.name)))

    def _linked(self) -> Link:
        """Make our end of a link that another instance opens."""
        link = Link(
            lambda *frame: self._unnamed_received(link, *frame),
            lambda _: self._forget(link),
            on_made=lambda: self._await_hello(link),
            most_bytes=_MOST_HELLO_BYTES,
        )
        return link

    def _await_hello(self, link: Link) -> None:
        self._unnamed[link] = asyncio.get_running_loop().call_later(
            _HELLO_SECONDS, link.end, "it does not say who it is"
        )

    def _forget(self, link: Link) -> None:
        self._challenged.pop(link, None)
        timer = self._unnamed.pop(link, None)
        if timer is not None:
            timer.cancel()

    def _unnamed_received(self, link: Link, kind: Kind, _number: int, payload: memoryview) -> None:
        """Answer HELLO, in any order and form: no peer is authenticated before its PROOF."""
        try:
            document = read_document(payload)
            if kind is Kind.HELLO:
                self._challenge(link, document)
                return
            name, nonce = self._challenged.pop(link)
            shown = str(document["proof"])
        except (ValueError, KeyError, TypeError):
            link.end("it is no instance of this registry")
            return
        if kind is Kind.PROOF and hmac.compare_digest(
            shown, proof(self._lead.secret, "gateway", name, nonce)
        ):
            self._name(link, name)
        else:
            link.end("it does not have the instances' secret")

    def _challenge(self, link: Link, hello: Mapping[str, Any]) -> None:
        name, nonce = str(hello["name"]), str(hello["nonce"])
        version = min(LINK_VERSION, int(hello["version"]))
        if version < max(LINK_VERSION - 1, int(hello.get("oldest_version", hello["version"]))):
            link.send(Kind.PROBLEM, 0, b"this leader does not speak that form of links: upgrade one by one")
            link.close()
            return
        own = secrets.token_hex(_NONCE_BYTES)
        self._challenged[link] = name, own
        shown = proof(self._lead.secret, "leader", name, nonce)
        link.send_document(Kind.CHALLENGE, 0, {"nonce": own, "proof": shown, "version": version})

    def _name(self, link: Link, name: str) -> None:
        """Accept the gateway of an instance."""
        self._forget(link)
        if (before := self._gateways.get(name)) is not None:
            before.link.end("the same instance has linked again")
            self._link_lost(before, "the same instance has linked again")
        gateway = LinkedGateway(name, heard_at=time.monotonic())
        gateway.link = link
        link.hand_over(partial(self._received, gateway), partial(self._link_lost, gateway))
        self._gateways[name] = gateway
        link.send(Kind.SETTINGS, 0, SETTINGS.dump_json(self._settings))
        _LOG.info("gateway_linked", gateway=name)

    def _received(  # noqa: PLR0917 - as a link calls it
        self, gateway: LinkedGateway, kind: Kind, local: int, payload: memoryview
    ) -> None:
        if not self._lead.lasts():
            gateway.link.end("this instance leads no more")
            return
        if self._links.received(gateway, kind, local, payload):
            return
        if kind is Kind.LISTENING:
            gateway.listening_since = time.monotonic()
        elif kind is Kind.LAG:
            gateway.lag_seconds = unpack_lag(payload)
        else:
            gateway.link.end(f"it sent a frame of kind {kind.name}; this is a bug, please report it")

    def _link_lost(self, gateway: LinkedGateway, problem: str) -> None:
        """Treat its connections as cut off: they may still be open."""
        if self._gateways.get(gateway.name) is not gateway:
            return
        del self._gateways[gateway.name]
        if self._admitting:
            _LOG.warning(
                "gateway_cut_off", gateway=gateway.name, nodes=len(gateway.connections), problem=problem
            )
            self._links.cut_off(gateway)

    def _watch(self, planned_at: float) -> None:
        """Send each gateway a sign of life, and end the links that are silent."""
        now, alive = time.monotonic(), pack_alive(time.time(), self._lead.revision())
        for gateway in tuple(self._gateways.values()):
            if now - planned_at > WATCH_SECONDS:  # we stood still ourselves: what they said waits
                gateway.heard_at = now
            if now - gateway.heard_at > SILENT_SECONDS:
                gateway.link.end(f"it has said nothing for {SILENT_SECONDS:g} s")
            else:
                gateway.link.send(Kind.ALIVE, 0, alive)
        self._watching = asyncio.get_running_loop().call_later(
            WATCH_SECONDS, self._watch, now + WATCH_SECONDS
        )
