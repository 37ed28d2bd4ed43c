"""Stage directions about tokens: who makes them, who has them, who lost them.

A token's text is its id: nobody on this stage guesses.
"""

from gpu_agent.registry.events import (
    Event,
    JoinTokenMade,
    RemovalAsked,
    RotationAsked,
    TokenRevoked,
)
from tests.scenarios.directions import NODE, direction, tell, tell_answer
from tests.scenarios.registry_side import digest_of
from tests.scenarios.theatre import Theatre
from tests.scenarios.wording import token_listed


@direction(
    r"operator makes token (?P<token>\S+) for (?:(?P<uses>\d+)|any number of) nodes?"
    r"(?: within (?P<seconds>\d+) s)?(?: with label (?P<label>\S+)=(?P<value>\S+))?(?: named (?P<id>\S+))?"
)
def _make(theatre: Theatre, said: dict[str, str]) -> None:
    result = theatre.ask(
        lambda ref: JoinTokenMade(
            ref=ref,
            token_id=said["token"],
            digest=digest_of(said["token"]),
            ttl_seconds=float(said["seconds"]) if said["seconds"] else None,
            uses=int(said["uses"]) if said["uses"] else None,
            labels={said["label"]: said["value"]} if said["label"] else {},
            node_id=said["id"] or None,
            reclaims=False,
        )
    )
    tell_answer(theatre, "operator", result)


@direction(r"operator reclaims (?P<name>\S+) by token (?P<token>\S+)")
def _reclaim(theatre: Theatre, said: dict[str, str]) -> None:
    """Of a node by name, or by an id that its agent has forgotten."""
    token, name = said["token"], said["name"]
    node_id = theatre.node_id(name) if name in theatre.players else name
    result = theatre.ask(
        lambda ref: JoinTokenMade(
            ref=ref, token_id=token, digest=digest_of(token), ttl_seconds=3600.0, node_id=node_id
        )
    )
    tell_answer(theatre, "operator", result)


@direction(rf"operator (?P<what>rotates|forgets) {NODE}(?P<at_once> at once)?")
def _of_node(theatre: Theatre, said: dict[str, str]) -> None:
    node_id, at_once = theatre.node_id(said["name"]), bool(said["at_once"])

    def event(ref: int) -> Event:
        rotates = said["what"] == "rotates"
        return RotationAsked(ref, node_id, at_once) if rotates else RemovalAsked(ref, node_id)

    tell_answer(theatre, "operator", theatre.ask(event))


@direction(r"operator revokes token (?P<token>\S+)")
def _revoke(theatre: Theatre, said: dict[str, str]) -> None:
    tell_answer(theatre, "operator", theatre.ask(lambda ref: TokenRevoked(ref, said["token"])))


@direction(r"operator lists tokens")
def _list(theatre: Theatre, _: dict[str, str]) -> None:
    tokens = theatre.registry.fleet.tokens()
    tell(theatre, "operator", [token_listed(token, theatre.now) for token in tokens])


@direction(rf"give {NODE} token (?P<token>\S+)")
def _give(theatre: Theatre, said: dict[str, str]) -> None:
    theatre.agent(said["name"]).join_token = said["token"]


@direction(rf"wipe {NODE}")
def _wipe(theatre: Theatre, said: dict[str, str]) -> None:
    """Its state directory is gone, say with its disk."""
    agent = theatre.agent(said["name"])
    agent.node_id = agent.token = None
