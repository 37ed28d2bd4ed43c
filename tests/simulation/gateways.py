"""Gateways between the network and the registry: they hold the connections, and the registry may change.

Each has a link to the registry's process. A link neither reorders nor loses single frames: it ends, and what
was on its way may be lost; each side learns that in its own time. A registry that crashes takes no
connection with it. To the next one each gateway reports its sessions as `SessionReported` says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Protocol

from gpu_agent.registry.events import Event, HeartbeatReceived, HeartbeatRepeated, SessionReported
from gpu_agent.registry.fleet import Fleet
from gpu_agent.server.gateway.gateway import ANSWERS_NO_REGISTRATION
from gpu_agent.server.gateway.heartbeat_relay import HeartbeatRelay, News, amounts_of
from gpu_agent.session.types import ConnectFailed
from gpu_agent.wire.codec import decode_from_node, decode_from_registry
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import (
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
)
from tests.simulation.fault_profile import FaultProfile
from tests.simulation.network import REGISTER_SECONDS, Connection, DownFrame, Network, Pipe, UpFrame
from tests.simulation.world import World

LINK_AGAIN_SECONDS = 1.0
ALONE_SECONDS = 10.0
"""So long a gateway holds connections for a registry that runs and does not answer it."""
_LONGEST_WAY_SECONDS = 0.3
_FORGETFUL = 0.1
"""So often a gateway cannot hand on all that a node declared."""


class Registry(Protocol):
    """What gateways need of the registry's process."""

    fleet: Fleet
    running: bool
    busy_until: float

    def turn_away(self, connection: Connection) -> ConnectFailed | None: ...
    def opened(self, connection: Connection) -> None: ...
    def inherit(self, connection: Connection) -> None: ...
    def hear(self, connection: Connection, frame: UpFrame) -> None: ...
    def take_report(self, connection: Connection, report: SessionReported) -> None: ...
    def handle(self, event: Event) -> None: ...
    def lost(self, connection: Connection, *, link_ended: bool = False) -> None: ...


@dataclass(eq=False, slots=True)
class Link:
    """The link of one gateway to one process of the registry."""

    up: Pipe = field(default_factory=Pipe)
    down: Pipe = field(default_factory=Pipe)
    leads: bool = True
    """While the registry takes it for open."""
    follows: bool = True
    """While the gateway does."""
    connections: dict[Connection, None] = field(default_factory=dict)
    """Those that the registry knows by it."""


@dataclass(eq=False, slots=True)
class Session:
    """What a gateway knows of one connection."""

    gateway: "Gateway"
    place: int
    """Its number at the gateways; a later one is that of a newer connection."""
    node_id: str | None = None
    epoch: int = 0
    last: Heartbeat | None = None
    last_at: float = 0.0
    heard_at: list[float] = field(default_factory=list)
    """When heartbeats came, each moment once."""
    parts: Heartbeat | None = None
    """All parts that the node replaced since it registered."""
    registration: UpFrame | None = None
    unregistration: UpFrame | None = None
    unheard: list[UpFrame] = field(default_factory=list)
    exact: bool = False
    closing: bool = False


@dataclass(eq=False, slots=True)
class Gateway:
    """One gateway, over all of its processes."""

    name: str
    runs: bool = True
    link: Link | None = None
    linked_at: float = 0.0
    alone_since: float = 0.0
    """Since when a registry runs, and the gateway has no link to it."""
    cut_off_until: float = 0.0


class Gateways:
    """To the network they are the registry, and to the registry they are the network."""

    busy_until = 0.0

    def __init__(self, world: World, network: Network, profile: FaultProfile) -> None:
        self.sessions: dict[Connection, Session] = {}
        self._world, self._network, self._profile = world, network, profile
        self._registry: Registry
        self._links: dict[Gateway, Link] = {}
        """Of each gateway, as the registry knows them."""
        self._all = [Gateway(f"gateway-{number + 1}") for number in range(profile.gateways)]
        self._relay = HeartbeatRelay(profile.thresholds)
        self._places = 0

    def lead_by(self, registry: Registry) -> None:
        """Say whom they serve."""
        self._registry = registry
        for gateway in self._all:
            self._world.after(self._world.dice.uniform(0.0, LINK_AGAIN_SECONDS), partial(self._tick, gateway))

    @property
    def all(self) -> list[Gateway]:
        """All gateways."""
        return self._all

    def linked(self, *, for_seconds: float) -> Iterator[Session]:
        """Find the sessions of gateways whose link has lasted so long, under a registry that hears them."""
        since = self._world.now - for_seconds
        heard = self._registry.busy_until <= since
        for session in self.sessions.values() if heard else ():
            link = session.gateway.link
            whole = link is not None and link.leads and link.up.lost_from == inf
            if whole and session.gateway.linked_at <= since and not session.closing:
                yield session

    # What the network calls.

    @property
    def running(self) -> bool:
        return any(gateway.runs for gateway in self._all)

    def turn_away(self, connection: Connection) -> ConnectFailed | None:
        """Have the registry decide on a handshake; without a link to it there is no answer but 503."""
        running = [one for one in self._all if one.runs]
        if not running:
            return ConnectFailed("connection refused")
        gateway = self._world.dice.choice(running)
        link, registry = gateway.link, self._registry
        linked = link is not None and link.leads and self._links.get(gateway) is link
        if link is None or not linked or registry.busy_until > self._world.now:
            return ConnectFailed("the registry has no leader at the moment", http_status=503)
        refusal = registry.turn_away(connection)
        if refusal is None:
            self._places += 1
            self.sessions[connection] = Session(gateway, self._places)
            link.connections[connection] = None
        return refusal

    def opened(self, connection: Connection) -> None:
        """A connection is open; without a registration it is closed soon."""
        self._registry.opened(connection)
        self._world.after(REGISTER_SECONDS, lambda: self._registration_overdue(connection))

    def hear(self, connection: Connection, frame: UpFrame) -> None:
        """Hand a frame on; what is not answered is held."""
        session = self.sessions.get(connection)
        if session is None or session.closing:
            return
        message = decode_from_node(frame) if isinstance(frame, str) else frame
        if isinstance(message, NodeHeartbeat):
            self._hear_heartbeat(connection, session, frame, Heartbeat.of(message))
            return
        if isinstance(message, NodeRegister):
            self._relay.declared(session.place, message.hardware)
            session.registration = frame
        elif isinstance(message, NodeUnregister):
            session.unregistration = frame
        elif session.gateway.link is None:
            session.unheard.append(frame)
        self._up(session.gateway, lambda: self._registry.hear(connection, frame))

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        session = self.sessions.pop(connection, None)
        if session is not None:
            self._relay.forget(session.place)
            link = session.gateway.link

            def lose() -> None:
                if link is not None and connection in link.connections:
                    del link.connections[connection]
                    self._registry.lost(connection)

            self._up(session.gateway, lose)

    # What the registry calls.

    def send_down(self, connection: Connection, frame: DownFrame) -> None:
        """Send a frame to the gateway that holds the connection."""
        self._down(connection, lambda session: self._deliver(connection, session, frame))

    def close(self, connection: Connection, code: int, reason: str) -> None:
        """Have the gateway close the connection."""
        self._down(connection, lambda session: self._close(connection, session, code, reason))

    def registry_is_gone(self, *, agents_learn_within: float) -> None:
        """The registry's process has ended; what it sent last may still arrive."""
        for gateway in self._all:
            link = gateway.link
            if link is not None:
                link.leads = False
                self._break(link)
                learns = self._world.dice.uniform(0.0, min(agents_learn_within, ALONE_SECONDS / 2))
                self._gateway_learns(gateway, link, learns)

    # Faults.

    def crash(self, gateway: Gateway, *, agents_learn_within: float) -> None:
        """End a gateway's process, and its connections with it."""
        self._say(gateway, "crashes")
        gateway.runs = False
        held = [connection for connection, session in self.sessions.items() if session.gateway is gateway]
        for connection in held:
            self._relay.forget(self.sessions.pop(connection).place)
        self._network.registry_is_gone(agents_learn_within=agents_learn_within, of=held)
        link, gateway.link = gateway.link, None
        if link is not None:
            link.follows = False
            self._break(link)
            self._registry_learns(link, self._world.dice.uniform(0.0, 0.1))

    def start(self, gateway: Gateway) -> None:
        """Start a gateway that has crashed."""
        gateway.runs, gateway.alone_since = True, self._world.now

    def cut(self, gateway: Gateway, seconds: float) -> None:
        """Cut a gateway off from the registry for so long; each side notices sooner or later."""
        self._say(gateway, f"is cut off for {seconds:g} s")
        gateway.cut_off_until = self._world.now + seconds
        link = gateway.link
        if link is not None:
            self._break(link)
            self._gateway_learns(gateway, link, self._world.dice.choice((0.05, 3.0, 10.0)))
            self._registry_learns(link, self._world.dice.choice((0.05, 3.0, 10.0)))

    def heal(self) -> None:
        """Let all gateways run and reach the registry."""
        for gateway in self._all:
            gateway.cut_off_until = 0.0
            if not gateway.runs:
                self.start(gateway)

    # Linking.

    def _tick(self, gateway: Gateway) -> None:
        """Link again where there is no link; do not hold connections for ever for a registry out of reach."""
        self._world.after(LINK_AGAIN_SECONDS, lambda: self._tick(gateway))
        registry, now = self._registry, self._world.now
        if gateway.link is not None or not registry.running or not gateway.runs:
            gateway.alone_since = now
        elif now >= gateway.cut_off_until and registry.busy_until <= now:
            self._link(gateway)
        elif now - gateway.alone_since > ALONE_SECONDS:
            for connection, session in list(self.sessions.items()):
                if session.gateway is gateway:
                    reason = "this gateway cannot reach the leader"
                    self._close(connection, session, CloseCode.SERVICE_RESTART, reason)

    def _link(self, gateway: Gateway) -> None:
        self._say(gateway, "links to the registry")
        link = gateway.link = Link()
        gateway.linked_at = self._world.now
        self._up(gateway, lambda: self._registry_links(gateway, link))
        held = [(one, session) for one, session in self.sessions.items() if session.gateway is gateway]
        self._world.dice.shuffle(held)
        for connection, session in held:
            if not session.closing:
                self._report(connection, session, link)

    def _registry_links(self, gateway: Gateway, link: Link) -> None:
        """The registry ends the link that it takes for this gateway's, before it hears the new one."""
        before = self._links.get(gateway)
        if before is not None and before.leads:
            self._registry_loses(before)
        self._links[gateway] = link

    def _report(self, connection: Connection, session: Session, link: Link) -> None:
        registry, now, last = self._registry, self._world.now, session.last
        self._relay.set_exact(session.place, exact=False)
        session.exact = False
        age = None if last is None else now - session.last_at
        is_complete = session.parts is None or not self._world.chance(_FORGETFUL)
        handed_on = last.with_parts_of(session.parts) if last and session.parts and is_complete else last

        def inherit() -> None:
            link.connections[connection] = None
            registry.inherit(connection)

        self._up(session.gateway, inherit)
        if session.node_id is not None:
            self._relay.registered(session.place, session.node_id)
            report = SessionReported(
                connection=connection.number,
                node_id=session.node_id,
                session_epoch=session.epoch,
                credential=connection.credential,
                address=connection.agent.name,
                heartbeat_age_seconds=age,
                is_complete=is_complete,
            )
            self._up(session.gateway, partial(registry.take_report, connection, report))
            if handed_on is not None:
                event = HeartbeatReceived(connection.number, handed_on, age_seconds=age or 0.0)
                self._up(session.gateway, lambda: self._take_heartbeat(connection, event))
        for frame in (session.registration, *session.unheard, session.unregistration):
            if frame is not None:
                self._up(session.gateway, partial(registry.hear, connection, frame))
        session.unheard.clear()

    # Frames.

    def _hear_heartbeat(
        self, connection: Connection, session: Session, frame: UpFrame, heartbeat: Heartbeat
    ) -> None:
        now = self._world.now
        if session.node_id is not None:
            session.last, session.last_at = heartbeat, now
            if session.heard_at[-1:] != [now]:
                session.heard_at.append(now)
            if heartbeat.parts is not None:
                earlier = session.parts
                session.parts = heartbeat if earlier is None else heartbeat.with_parts_of(earlier)
        if session.gateway.link is None:
            return
        news = self._relay.news_of(session.place, heartbeat, now)
        if news is News.WHOLE or session.node_id is None:
            self._up(session.gateway, lambda: self._take_heartbeat(connection, frame))
        else:
            age = heartbeat.probe_age_seconds
            amounts = amounts_of(heartbeat) if news is News.AMOUNTS else None
            self._up(
                session.gateway,
                lambda: self._take_heartbeat(
                    connection, HeartbeatRepeated(connection.number, self._world.now - now, age, amounts)
                ),
            )

    def _take_heartbeat(
        self, connection: Connection, heartbeat: UpFrame | HeartbeatReceived | HeartbeatRepeated
    ) -> None:
        """Let the registry have a heartbeat; it may want exact figures from then on."""
        registry = self._registry
        if isinstance(heartbeat, HeartbeatReceived | HeartbeatRepeated):
            registry.handle(heartbeat)
        else:
            registry.hear(connection, heartbeat)
        session = self.sessions.get(connection)
        if session is None or not registry.running:
            return
        exact = registry.fleet.wants_exact_figures(connection.number)
        if exact is not session.exact:
            session.exact = exact
            self._down(connection, lambda one: self._relay.set_exact(one.place, exact=exact))

    def _deliver(self, connection: Connection, session: Session, frame: DownFrame) -> None:
        message = decode_from_registry(frame) if isinstance(frame, str) else frame
        if isinstance(message, NodeRegisterAck):
            session.node_id, session.epoch = message.node_id, message.session_epoch or 0
            session.last = session.parts = None
            session.registration = None
            self._relay.registered(session.place, message.node_id)
        elif isinstance(message, NodeError):
            self._relay.refused(session.place)
            if message.code not in ANSWERS_NO_REGISTRATION:
                session.registration = None
            elif message.code == ErrorCode.UNKNOWN_NODE:
                session.unregistration = None
        elif isinstance(message, NodeStatusMessage):
            session.unregistration = None
        self._network.send_down(connection, frame)

    def _close(self, connection: Connection, session: Session, code: int, reason: str) -> None:
        if not session.closing:
            session.closing = True
            self._network.close(connection, code, reason)

    def _registration_overdue(self, connection: Connection) -> None:
        session = self.sessions.get(connection)
        if session is not None and session.node_id is None:
            self._close(connection, session, CloseCode.POLICY_VIOLATION, "no valid node_register in time")

    def _up(self, gateway: Gateway, do: Callable[[], None]) -> None:
        link = gateway.link
        if link is not None:
            self._carry(link.up, lambda: self._reach_registry(link, do))

    def _reach_registry(self, link: Link, do: Callable[[], None]) -> None:
        busy_until = self._registry.busy_until
        if link.leads and busy_until > self._world.now:
            self._world.put_off(busy_until, lambda: self._reach_registry(link, do))
        elif link.leads:
            do()

    def _down(self, connection: Connection, do: Callable[[Session], None]) -> None:
        session = self.sessions.get(connection)
        if session is None:
            return
        link = self._links.get(session.gateway)
        if link is None or not link.leads:
            return

        def reach() -> None:
            if link.follows and self.sessions.get(connection) is session:
                do(session)

        self._carry(link.down, reach)

    def _carry(self, pipe: Pipe, reach: Callable[[], None]) -> None:
        number = pipe.sent
        pipe.sent += 1
        if number >= pipe.lost_from:
            return
        longest = min(self._profile.most_seconds_on_the_way, _LONGEST_WAY_SECONDS)
        pipe.last_at = max(pipe.last_at, self._world.now) + self._world.dice.uniform(0.0001, longest / 10)

        def arrive() -> None:
            if number < pipe.lost_from:
                pipe.arrived = number + 1
                reach()

        self._world.at(pipe.last_at, arrive)

    # The end of a link.

    def _break(self, link: Link) -> None:
        """Lose the tail of what is on its way."""
        for pipe in (link.up, link.down):
            pipe.lost_from = min(pipe.lost_from, self._world.dice.randint(pipe.arrived, pipe.sent))

    def _gateway_learns(self, gateway: Gateway, link: Link, seconds: float) -> None:
        def learn() -> None:
            link.follows = False
            if gateway.link is link:
                self._say(gateway, "has no link any more")
                gateway.link, gateway.alone_since = None, self._world.now

        self._world.at(max(self._world.now + seconds, link.down.last_at), learn)

    def _registry_learns(self, link: Link, seconds: float) -> None:
        def learn() -> None:
            busy_until = self._registry.busy_until
            if busy_until > self._world.now:
                self._world.put_off(busy_until, learn)
            elif link.leads:
                self._registry_loses(link)

        self._world.at(max(self._world.now + seconds, link.up.last_at), learn)

    def _registry_loses(self, link: Link) -> None:
        link.leads = False
        for connection in link.connections:
            self._registry.lost(connection, link_ended=True)

    def _say(self, gateway: Gateway, what: str) -> None:
        self._world.say(gateway.name, what)
