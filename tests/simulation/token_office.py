"""The operator who sees to tokens: hands out, rotates, reclaims, revokes, and helps who is locked out."""

from collections.abc import Callable

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.credentials import CredentialKind
from gpu_agent.registry.events import JoinTokenMade, RotationAsked, TokenRevoked
from gpu_agent.server.minting import PREFIXES
from tests.simulation.agents import Agent
from tests.simulation.desk import Desk
from tests.simulation.scene import Scene

_PATIENT_TRIES = 1_000_000
_ANSWER_SECONDS = 6.0


class TokenOffice:
    """Does nothing in a world with auth off."""

    def __init__(self, scene: Scene, desk: Desk) -> None:
        self._scene, self._desk = scene, desk
        self._join_id: str | None = None
        """Of the join token that lies on every machine."""

    def open(self) -> None:
        """Give every machine a join token."""
        if not self._scene.climate.auth_off:
            self._join_token(self._hand_out, tries=_PATIENT_TRIES)

    def work(self) -> None:
        """Do one of the things that are done to tokens."""
        if not self._scene.climate.auth_off:
            self._scene.world.dice.choice((self._rotate, self._rotate, self._reclaim, self._replace))()

    def help(self, agent: Agent) -> None:
        """Put a join token on the machine of somebody who is locked out for good."""
        self._join_token(lambda _, text: setattr(agent.disk, "join_token", text), tries=_PATIENT_TRIES)

    def _hand_out(self, token_id: str, text: str) -> None:
        self._join_id = token_id
        for agent in self._scene.agents:
            agent.disk.join_token = text

    def _replace(self) -> None:
        """Revoke the join token that lies everywhere, and hand out another; sometimes with few uses."""
        old, dice = self._join_id, self._scene.world.dice
        uses = dice.choice((None, None, len(self._scene.agents), 1))
        self._join_token(self._hand_out, uses=uses)
        if old is not None:
            self._say(f"revokes {old}")
            self._desk.ask(lambda ref: TokenRevoked(ref, old))

    def _rotate(self) -> None:
        node_id, dice = self._some_node(), self._scene.world.dice
        at_once = dice.random() < 1 / 4
        if node_id is not None:
            self._say(f"rotates {node_id}{' at once' if at_once else ''}")
            self._desk.ask(lambda ref: RotationAsked(ref, node_id, at_once))

    def _reclaim(self) -> None:
        """Give a machine that lost its state its id back."""
        known = [one for one in self._scene.agents if one.disk.node_id is not None]
        if known:
            agent = self._scene.world.dice.choice(known)
            node_id = agent.disk.node_id
            agent.crash(without_a_word=False)
            agent.disk.node_id = agent.disk.node_token = None
            self._say(f"reclaims {node_id} for {agent.name}")

            def hand_over(_: str, text: str) -> None:
                agent.disk.join_token = text
                agent.start()

            self._join_token(hand_over, node_id=node_id)
            self._scene.world.after(60.0, agent.start)

    def _join_token(
        self,
        told: Callable[[str, str], None],
        *,
        uses: int | None = None,
        node_id: str | None = None,
        tries: int = 3,
    ) -> None:
        """Make a join or reclaim token, and another where no answer came, as nobody would know its text."""
        minted = self._scene.world.mint(PREFIXES[CredentialKind.JOIN])
        self._say(f"makes {minted.token_id} for {node_id or f'{uses} nodes'}")
        heard: list[str] = []

        def then(result: Result) -> None:
            if not isinstance(result, Refusal):
                heard.append(minted.token_id)
                told(minted.token_id, minted.text)

        def look() -> None:
            if not heard and tries > 1:
                self._join_token(told, uses=uses, node_id=node_id, tries=tries - 1)

        self._desk.ask(
            lambda ref: JoinTokenMade(
                ref=ref,
                token_id=minted.token_id,
                digest=minted.digest,
                uses=1 if node_id is not None else uses,
                node_id=node_id,
                reclaims=node_id is not None,
            ),
            then,
            tries=1,
        )
        self._scene.world.after(_ANSWER_SECONDS, look)

    def _some_node(self) -> str | None:
        registry = self._scene.registry
        known = sorted(record.node_id for record in self._scene.records()) if registry.running else []
        return self._scene.world.dice.choice(known) if known else None

    def _say(self, what: str) -> None:
        self._scene.world.say("operator", what)
