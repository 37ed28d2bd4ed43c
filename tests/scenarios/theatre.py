"""The theatre: one registry, any number of nodes, a network that loses nothing, and a clock that never waits.

Both sides are the pure machines themselves. Frames travel as the bytes that the codec writes, in order
and in no time; the clock jumps from one deadline to the next. So a play is always played alike.
"""

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import assert_never

from gpu_agent.registry.actions import Result
from gpu_agent.registry.events import Event
from gpu_agent.wire.codec import FrameError, decode_from_node
from gpu_agent.wire.messages import NodeHeartbeat
from tests.scenarios.player import Dial, Frame, HangUp, Outward, Player, Told
from tests.scenarios.players import Agent, OlderNode
from tests.scenarios.registry_side import House, RegistrySide
from tests.scenarios.transcript import Line, Transcript
from tests.scenarios.wording import said_by_node

_ABNORMAL = 1006
"""How a socket that breaks without a close frame is told of."""


class Theatre:
    def __init__(self) -> None:
        self.now = 0.0
        self.transcript = Transcript()
        self.players: dict[str, Player] = {}
        self._connections: dict[int, Player] = {}
        self._numbers, self._refs = count(1), count(1)
        self._post: deque[Callable[[], None]] = deque()
        self._frozen: dict[str, list[Callable[[], None]]] = {}
        """By the name of a player that does nothing: what waits for it."""
        self._unplugged: set[str] = set()
        self.registry = self._registry(House())

    def furnish(self, house: House) -> None:
        """Open with another registry; only before anybody has come on stage."""
        assert not self.players, "say what the registry is like before the first node comes"
        self.registry = self._registry(house)

    def agent(self, name: str) -> Agent:
        player = self.players[name]
        assert isinstance(player, Agent), f"{name} is no agent of ours"
        return player

    def node_id(self, name: str) -> str:
        """The id that a node goes by."""
        player = self.players[name]
        assert isinstance(player, Agent | OlderNode), f"{name} is no node"
        assert player.node_id is not None, f"{name} has no id yet"
        return player.node_id

    def enter(self, player: Player) -> None:
        self.players[player.name] = player

    def run(self, seconds: float) -> None:
        """Let time pass. Nodes come before the registry where both are due at once."""
        end = round(self.now + seconds, 6)
        while (due := self._next_deadline()) <= end:
            self.now = max(self.now, due)
            for player in list(self.players.values()):
                if player.name not in self._frozen and player.deadline <= self.now:
                    self.act(player, player.wake(self.now))
            if self.registry.deadline <= self.now:
                self.registry.wake()
                self._deliver()
        self.now = end

    def act(self, player: Player, outward: list[Outward]) -> None:
        """Do what a player does to its connection, and all that follows at once."""
        for one in outward:
            self._act_once(player, one)
        self._deliver()

    def ask(self, event_of: Callable[[int], Event]) -> Result:
        """Ask the registry something; `event_of` makes the event for a `ref`."""
        ref = next(self._refs)
        self.registry.handle(event_of(ref))
        self._deliver()
        return self.registry.answers.pop(ref)

    def freeze(self, name: str) -> None:
        """Stop a machine dead: it says nothing and hears nothing, and its socket stays open."""
        self._frozen[name] = []

    def thaw(self, name: str) -> None:
        """Let it go on: first it hears what has waited."""
        self._post.extend(self._frozen.pop(name))
        self._deliver()

    def cut(self, name: str) -> None:
        """Break a node's connection."""
        self._part(self._number_of(self.players[name]), _ABNORMAL, "the network broke")
        self._deliver()

    def unplug(self, name: str) -> None:
        """Break its connection, and let it open no other."""
        self._unplugged.add(name)
        self.cut(name)

    def plug_in(self, name: str) -> None:
        self._unplugged.discard(name)

    def stop_registry(self) -> None:
        self.registry.stop()
        for number in list(self._connections):
            self._part(number, _ABNORMAL, "the registry is gone")
        self._deliver()

    def start_registry(self) -> None:
        self.registry.start()
        self._deliver()

    def _registry(self, house: House) -> RegistrySide:
        return RegistrySide(
            house,
            self.transcript,
            now=lambda: self.now,
            send=self._send_to_node,
            close=lambda number, code, reason: self._post.append(lambda: self._part(number, code, reason)),
        )

    def _next_deadline(self) -> float:
        awake = [player.deadline for name, player in self.players.items() if name not in self._frozen]
        return min(*awake, self.registry.deadline) if awake else self.registry.deadline

    def _act_once(self, player: Player, outward: Outward) -> None:
        match outward:
            case Told(text):
                self._write("{}", player, text)
            case Dial():
                self._post.append(lambda: self._dial(player, outward))
            case Frame(text):
                number = self._number_of(player)
                self._write_frame(player, text)
                self._post.append(lambda: self.registry.frame_arrived(number, text))
            case HangUp():
                number = self._number_of(player)
                self._write("{} → registry", player, "closes")
                del self._connections[number]
                self._post.append(lambda: self.registry.lost(number))
            case _ as unreachable:
                assert_never(unreachable)

    def _dial(self, player: Player, dial: Dial) -> None:
        if player.name in self._unplugged or not self.registry.running:
            why = "no route to the registry" if self.registry.running else "connection refused"
            self.act(player, player.refused(why, self.now))
            return
        self._write("{} → registry", player, f"connects{self._presented(player, dial)}")
        status = self.registry.turns_away(dial.token)
        if status is not None:
            self._write("registry → {}", player, f"turns it away ({status})")
            self.act(player, player.refused(f"HTTP {status}", self.now, http_status=status))
            return
        number = next(self._numbers)
        self._connections[number] = player
        self.registry.opened(number, player.name, dial.token)
        self.act(player, player.opened(self.now))

    def _presented(self, player: Player, dial: Dial) -> str:
        if dial.token is None or self.registry.auth_off:
            return ""
        own = isinstance(player, Agent) and dial.token == player.token
        return " with its node token" if own else f" with token {dial.token}"

    def _send_to_node(self, number: int, frame: str) -> None:
        player = self._connections.get(number)
        if player is not None:
            self._reach(player, lambda: self._hear(number, player, frame))

    def _hear(self, number: int, player: Player, frame: str) -> None:
        if self._connections.get(number) is player:  # it may have hung up meanwhile
            self.act(player, player.hear(frame, self.now))

    def _part(self, number: int, code: int, reason: str) -> None:
        """End a connection: both sides learn of it, a frozen one when it wakes."""
        player = self._connections.get(number)
        if player is None:
            return
        if self.registry.running:
            self._post.append(lambda: self.registry.lost(number))

        def closed() -> None:
            if self._connections.pop(number, None) is not None:
                self.act(player, player.closed(code, reason, self.now))

        self._reach(player, closed)

    def _reach(self, player: Player, delivery: Callable[[], None]) -> None:
        waiting = self._frozen.get(player.name)
        (self._post if waiting is None else waiting).append(delivery)

    def _deliver(self) -> None:
        while self._post:
            self._post.popleft()()

    def _number_of(self, player: Player) -> int:
        numbers = [number for number, holder in self._connections.items() if holder is player]
        assert numbers, f"{player.name} is not connected"
        return numbers[-1]

    def _write(self, who: str, player: Player, text: str) -> None:
        self.transcript.add(Line(self.now, who, player.name, text))

    def _write_frame(self, player: Player, frame: str) -> None:
        try:
            message = decode_from_node(frame)
        except FrameError:
            self._write("{} → registry", player, frame)
            return
        beat = isinstance(message, NodeHeartbeat)
        self.transcript.add(Line(self.now, "{} → registry", player.name, said_by_node(message), beat=beat))
