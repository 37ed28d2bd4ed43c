"""The network between agents and registry: TCP connections that are slow, break, and break on one side only.

A connection neither reorders nor duplicates frames. What may happen to it is delay, an end of which each
side learns in its own time or never, and the loss of what was still on its way. So frames of an old
connection may well arrive after those of a newer one.
"""

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Protocol

from gpu_agent.registry.tokens import Credential
from gpu_agent.session.types import ConnectFailed
from gpu_agent.wire.messages import FromNode, FromRegistry
from tests.simulation.world import World

OPEN_SECONDS = 10.0
"""So long an agent waits for its WebSocket."""

REGISTER_SECONDS = 10.0
"""So long the registry waits for a registration on it."""

CLOSE_SECONDS = 2.0
"""So long a peer may take to answer a close."""

ABNORMAL = 1006
"""The code of a socket that breaks without a close frame."""

UpFrame = str | FromNode
DownFrame = str | FromRegistry


class Pipe:
    """One direction of a connection."""

    __slots__ = ("arrived", "last_at", "lost_from", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.arrived = 0
        self.lost_from: float = inf
        """Frames from this one on are lost."""
        self.last_at = 0.0
        """When the frame sent last arrives: none overtakes it."""


class Connection:
    """One connection, with what each end still believes of it."""

    __slots__ = (
        "agent",
        "agent_open",
        "credential",
        "down",
        "identified",
        "number",
        "opened",
        "quota",
        "registry_open",
        "token",
        "up",
    )

    def __init__(self, agent: "Caller", token: str | None) -> None:
        self.agent = agent
        self.token = token
        self.credential: Credential | None = None
        """What the registry found the token to stand for."""
        self.quota: object = None
        """How much a connection may ask for; no agent here asks for too much."""
        self.number = 0
        """As the registry counts connections; 0 before it knows of this one."""
        self.up, self.down = Pipe(), Pipe()
        self.opened = False
        """True once the agent's WebSocket is up."""
        self.agent_open = True
        self.registry_open = False
        self.identified = False
        """True once a node was registered on it."""


class Caller(Protocol):
    """The agent's end."""

    @property
    def name(self) -> str: ...
    @property
    def busy_until(self) -> float: ...
    @property
    def unreachable_until(self) -> float: ...
    def opened(self, connection: Connection) -> None: ...
    def refused(self, connection: Connection, failure: ConnectFailed) -> None: ...
    def hear(self, connection: Connection, frame: DownFrame) -> None: ...
    def closed(self, connection: Connection, code: int, detail: str) -> None: ...


class Callee(Protocol):
    """The registry's end."""

    @property
    def running(self) -> bool: ...
    @property
    def busy_until(self) -> float: ...
    def turn_away(self, connection: Connection) -> ConnectFailed | None: ...
    def opened(self, connection: Connection) -> None: ...
    def hear(self, connection: Connection, frame: UpFrame) -> None: ...
    def lost(self, connection: Connection) -> None: ...


class Network:
    """All connections."""

    def __init__(self, world: World, *, most_seconds_on_the_way: float) -> None:
        self._world = world
        self._most = most_seconds_on_the_way
        self._registry: Callee
        self._open: dict[Connection, None] = {}
        self._slow_next: dict[Caller, float] = {}

    def serve(self, registry: Callee) -> None:
        """Say who answers."""
        self._registry = registry

    @property
    def connections(self) -> list[Connection]:
        """Those of which at least one end believes that they live."""
        return list(self._open)

    def of(self, agent: Caller) -> Iterator[Connection]:
        """Find an agent's connections, old ones too."""
        return (one for one in list(self._open) if one.agent is agent)

    def dial(self, agent: Caller, token: str | None) -> Connection:
        """Begin to open a connection; the agent hears what comes of it."""
        connection = Connection(agent, token)
        self._open[connection] = None
        world = self._world
        world.after(OPEN_SECONDS, lambda: self._give_up(connection))
        if agent.unreachable_until > world.now:
            self._fail(connection, ConnectFailed("no answer"), world.dice.uniform(1.0, OPEN_SECONDS))
        elif not self._registry.running:
            self._fail(connection, ConnectFailed("connection refused"), self._delay())
        else:
            self._up(connection, lambda: self._handshake(connection))
        return connection

    def send_up(self, connection: Connection, frame: UpFrame) -> None:
        """Send from the agent."""
        self._up(connection, lambda: self._registry.hear(connection, frame))

    def send_down(self, connection: Connection, frame: DownFrame) -> None:
        """Send from the registry."""
        self._down(connection, lambda: connection.agent.hear(connection, frame))

    def hang_up(self, connection: Connection) -> None:
        """The agent closes: what it sent before still arrives, unless the line is broken."""
        connection.agent_open = False
        self._up(connection, lambda: self._registry_loses(connection))
        self._tidy(connection)

    def close(self, connection: Connection, code: int, reason: str) -> None:
        """The registry closes: it hears no more, and waits a moment for the agent's goodbye."""
        self._down(connection, lambda: self._agent_loses(connection, code, reason))
        pause = self._world.dice.uniform(0.01, CLOSE_SECONDS)
        self._world.after(pause, lambda: self._registry_loses(connection))

    def cut(
        self, connection: Connection, *, agent_learns: float | None, registry_learns: float | None
    ) -> None:
        """Break a connection: the tail of what is on its way is lost. Who learns of it never is half open."""
        dice = self._world.dice
        for pipe in (connection.up, connection.down):
            pipe.lost_from = min(pipe.lost_from, dice.randint(pipe.arrived, pipe.sent))
        if agent_learns is not None:
            when = max(self._world.now + agent_learns, connection.down.last_at)
            self._world.at(when, lambda: self._agent_loses(connection, ABNORMAL, "the network broke"))
        if registry_learns is not None:
            when = max(self._world.now + registry_learns, connection.up.last_at)
            self._world.at(when, lambda: self._registry_loses(connection))

    def slow(self, connection: Connection, seconds: float) -> None:
        """Let what is sent from now on, in one direction, wait."""
        pipe = self._world.dice.choice((connection.up, connection.down))
        pipe.last_at = max(pipe.last_at, self._world.now + seconds)

    def slow_next(self, agent: Caller, seconds: float) -> None:
        """Let what an agent says first on its next connection take so long: it will have given up by then."""
        self._slow_next[agent] = seconds

    def agent_is_gone(self, connection: Connection, *, without_a_word: bool) -> None:
        """The agent's process ended; after a power loss the registry does not learn it."""
        connection.agent_open = False
        self.cut(connection, agent_learns=None, registry_learns=None if without_a_word else self._delay())
        self._tidy(connection)

    def registry_is_gone(self, *, agents_learn_within: float, of: Iterable[Connection] | None = None) -> None:
        """A process of the registry ended, and with it its end of these connections, or of every one."""
        for connection in self.connections if of is None else of:
            if connection.registry_open or not connection.opened:
                connection.registry_open = False
                learns = self._world.dice.uniform(0.0, agents_learn_within)
                self.cut(connection, agent_learns=learns, registry_learns=None)
            self._tidy(connection)

    def _handshake(self, connection: Connection) -> None:
        """Let the registry decide whether it takes a connection."""
        refusal = self._registry.turn_away(connection)
        if refusal is None:
            connection.registry_open = True
            self._open[connection] = None
            self._registry.opened(connection)
            self._down(connection, lambda: self._opened(connection))
        else:
            self._down(connection, lambda: self._refuse(connection, refusal))

    def _opened(self, connection: Connection) -> None:
        connection.opened = True
        slow = self._slow_next.pop(connection.agent, 0.0)
        connection.up.last_at = max(connection.up.last_at, self._world.now + slow)
        connection.agent.opened(connection)

    def _give_up(self, connection: Connection) -> None:
        if connection.agent_open and not connection.opened:
            self._refuse(connection, ConnectFailed(f"no WebSocket within {OPEN_SECONDS:g} s"))

    def _fail(self, connection: Connection, failure: ConnectFailed, seconds: float) -> None:
        self._world.after(seconds, lambda: self._refuse(connection, failure))

    def _refuse(self, connection: Connection, failure: ConnectFailed) -> None:
        agent = connection.agent
        if self._later(agent.busy_until, lambda: self._refuse(connection, failure)):
            return
        if connection.agent_open and not connection.opened:
            self.hang_up(connection)
            agent.refused(connection, failure)

    def _up(self, connection: Connection, arrive: Callable[[], None]) -> None:
        def reach() -> None:
            if not self._later(self._registry.busy_until, reach) and (
                connection.registry_open or not connection.number
            ):
                arrive()

        self._carry(connection.up, connection.agent.unreachable_until, reach)

    def _down(self, connection: Connection, arrive: Callable[[], None]) -> None:
        def reach() -> None:
            if not self._later(connection.agent.busy_until, reach) and connection.agent_open:
                arrive()

        self._carry(connection.down, connection.agent.unreachable_until, reach)

    def _carry(self, pipe: Pipe, held_until: float, reach: Callable[[], None]) -> None:
        number = pipe.sent
        pipe.sent += 1
        if number >= pipe.lost_from:
            return
        pipe.last_at = max(pipe.last_at, max(held_until, self._world.now) + self._delay())

        def arrive() -> None:
            if number < pipe.lost_from:
                pipe.arrived = number + 1
                reach()

        self._world.at(pipe.last_at, arrive)

    def _later(self, busy_until: float, do: Callable[[], None]) -> bool:
        """Put off what comes to somebody who stands still."""
        if busy_until <= self._world.now:
            return False
        self._world.put_off(busy_until, do)
        return True

    def _agent_loses(self, connection: Connection, code: int, detail: str) -> None:
        agent = connection.agent
        if self._later(agent.busy_until, lambda: self._agent_loses(connection, code, detail)):
            return
        if not connection.agent_open:
            return
        if connection.opened:
            self.hang_up(connection)
            agent.closed(connection, code, detail)
        else:
            self._refuse(connection, ConnectFailed(detail))

    def _registry_loses(self, connection: Connection) -> None:
        if self._later(self._registry.busy_until, lambda: self._registry_loses(connection)):
            return
        if connection.registry_open:
            connection.registry_open = False
            self._tidy(connection)
            self._registry.lost(connection)

    def _tidy(self, connection: Connection) -> None:
        if not connection.agent_open and not connection.registry_open:
            self._open.pop(connection, None)

    def _delay(self) -> float:
        return self._world.dice.uniform(0.001, self._most)
