"""How a registration proves its node, and whether it is given a token for the times after (§2).

Issues what the shell has drawn, or lets it go. Knows no connection's socket and no status.
"""

from dataclasses import replace

from gpu_agent.registry.credentials import CredentialKind
from gpu_agent.registry.events import RegistrationArrived
from gpu_agent.registry.keys import joined
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.registry.tokens import Token, Tokens


def issue(record: NodeRecord, event: RegistrationArrived, *, tokens: Tokens, step: Step) -> str | None:
    """Take a registration's proof, and return the text of the token that its ack brings, if any.

    Called before the connection stands for the node. Until its first beat a node that came by a join
    token is told another each time, as it may not have stored the one before. While it is rotated a
    connection is told one only: who registers there again has that, and no other may take its place.
    """
    fresh, credential = event.fresh_token, event.credential
    if fresh is None or credential is None:
        return None
    arrives = record.connection != event.connection
    if credential.kind is CredentialKind.JOIN and (arrives or not record.keys.spent):
        record.keys = joined(fresh, credential.token_id)
        _grant_labels(record, tokens.by_id.get(credential.token_id))
    else:
        if arrives:
            record.keys = record.keys.proven_by(credential.token_id)
        if not record.keys.rotating or record.issued_on == event.connection:
            return None
        record.keys = record.keys.followed_by(fresh)
    record.issued_on = event.connection
    step.note("node_token_issued", {"node_id": record.node_id, "token_id": fresh.token_id})
    return fresh.text


def spend(record: NodeRecord, tokens: Tokens, step: Step) -> None:
    """Count a node's first beat as a use of the token that it joined by; it holds its place from then on."""
    record.keys = replace(record.keys, spent=True)
    step.keep_node(record)
    token = tokens.by_id.get(record.keys.joined_by or "")
    if token is not None:
        tokens.put(token.used(step.now))
        step.keep_token(token.token_id)


def _grant_labels(record: NodeRecord, token: Token | None) -> None:
    """Give a node what its join token grants; one that only has its id back keeps what it had."""
    if token is not None and (token.labels or token.node_id is None):
        record.granted_labels = token.labels
