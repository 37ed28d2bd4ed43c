"""Whether a join token has room for one more node, and who makes room (§2).

A use is spent at a node's first beat. Until then the node's registration reserves it: a node that is
connected keeps its place; one that is gone, having lost its token perhaps before it was stored, yields
it to the next. Knows tokens and their nodes; admits nobody itself.
"""

from gpu_agent.registry.credentials import CredentialKind
from gpu_agent.registry.events import RegistrationArrived
from gpu_agent.registry.house import House
from gpu_agent.registry.letting_go import purge
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.step import Step
from gpu_agent.registry.tokens import Token, Tokens


def holds_place(record: NodeRecord | None, token: Token) -> bool:
    """Say whether a node came by this token and has not beaten yet: it may come by it again."""
    return record is not None and record.keys.joined_by == token.token_id and not record.keys.spent


def has_room(token: Token, tokens: Tokens, roster: Roster) -> bool:
    """Say whether one more node may come by a token, if need be in the place of one that is gone."""
    return _has_free_use(token, tokens) or bool(_yielding(token, tokens, roster))


def make_room(event: RegistrationArrived, node_id: str, *, house: House, step: Step) -> None:
    """Let go of the node that yields its place to this one, if one must."""
    credential, roster, tokens = event.credential, house.roster, house.tokens
    if credential is None or credential.kind is not CredentialKind.JOIN or event.connection in roster.bound:
        return
    token = tokens.by_id.get(credential.token_id)
    if token is None or holds_place(roster.records.get(node_id), token) or _has_free_use(token, tokens):
        return
    first = min(_yielding(token, tokens, roster), key=lambda record: (record.registered_at, record.node_id))
    step.remember(first)
    purge(first, house, why="its place at its join token went to another node", step=step)


def _has_free_use(token: Token, tokens: Tokens) -> bool:
    return token.uses is None or token.spent + len(tokens.reserved(token.token_id)) < token.uses


def _yielding(token: Token, tokens: Tokens, roster: Roster) -> list[NodeRecord]:
    """Find those that are gone; who carries an operator's wish keeps its place, and the wish is kept."""
    reserved = [roster.records[node_id] for node_id in tokens.reserved(token.token_id)]
    return [record for record in reserved if record.connection is None and not record.wished_upon]
