"""The documents of tokens: what creates, replaces and lists them, and how a browser signs in.

`wire.api` has them all.
"""

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from gpu_agent.wire.documents import (
    DAY_SECONDS,
    MAX_USES,
    TOKEN_KINDS,
    TOKEN_ROLES,
    TOKEN_STATES,
    ApiAnswer,
    ApiRequest,
    Labels,
    NodeId,
    Note,
    Ttl,
    WholeNumber,
)


class JoinTokenRequest(ApiRequest):
    """A token with which nodes join."""

    kind: Literal["join"] = Field(description="A token with which nodes join.")
    ttl_seconds: Ttl | None = Field(DAY_SECONDS, description="Seconds until it expires; null: never")
    uses: Annotated[int, Field(strict=True, ge=1, le=MAX_USES), WholeNumber] | None = Field(
        1, description="How many nodes may join with it; null: any number"
    )
    labels: Labels = Field(default_factory=dict, description="Granted to every node that joins with it")
    note: Note = Field("", description="For people who read the list of tokens; at most 200 characters.")
    node_id: NodeId | None = Field(
        None, description="The only node that may join with it, known or not; null: any"
    )


class OperatorTokenRequest(ApiRequest):
    """A token for a person or a program that uses this API."""

    kind: Literal["operator"] = Field(description="A token for this API.")
    role: Literal["read", "operate", "admin"] = Field(
        description="What it allows: each role includes the ones before it."
    )
    name: Note = Field("", description="Whose token it is")
    ttl_seconds: Ttl | None = Field(None, description="Seconds until it expires; null: never")


class ReclaimRequest(ApiRequest):
    """How long a node that lost its state has to reclaim its id."""

    ttl_seconds: Ttl | None = Field(DAY_SECONDS, description="Seconds until the token expires; null: never.")


class RotationRequest(ApiRequest):
    """How to replace a node's token."""

    revoke_now: StrictBool = Field(
        default=False, description="Revoke the old token before the node has the new one"
    )


class NewToken(ApiAnswer):
    """A token that was just created; no other answer holds its text."""

    token_id: str = Field(description="Names the token in lists and logs; no secret.")
    token: str = Field(repr=False, description="The secret; shown this once.")
    expires_at: float | None = Field(description="Unix time in seconds; null when it never expires")


class SignInLink(ApiAnswer):
    """Where a browser on the registry's own machine is signed in to the fleet page, once."""

    path: str = Field(repr=False, description="Behind the registry's address; it holds a secret.")
    expires_at: float | None = Field(description="Unix time in seconds; null with auth off, where it is `/`.")


class TokenView(ApiAnswer):
    """A join or operator token, or a session of the fleet page, without its secret."""

    token_id: str = Field(description="Names the token in lists and logs; no secret.")
    kind: str = Field(
        json_schema_extra={"enum": [*TOKEN_KINDS]},
        description="`join` for nodes, `operator` for this API, `session` for a browser that signed in.",
    )
    state: str = Field(
        json_schema_extra={"enum": [*TOKEN_STATES]}, description="Only a `live` token opens anything."
    )
    created_at: float = Field(description="Unix time in seconds.")
    expires_at: float | None = Field(description="Unix time in seconds; null where it never expires.")
    revoked_at: float | None = Field(description="Unix time in seconds; null where it was not revoked.")
    note: str = Field(description="For people.")
    uses: int | None = Field(description="How many nodes may join with it; null for any number")
    spent: int = Field(description="How many nodes have joined: a node counts from its first heartbeat")
    reserved: int = Field(
        description="How many nodes have registered without a heartbeat yet; a later one may replace them"
    )
    labels: dict[str, str] = Field(description="Granted to every node that joins with it.")
    node_id: str | None = Field(
        description="The only id that a node can get with it; null for every other token"
    )
    role: Annotated[str, Field(json_schema_extra={"enum": [*TOKEN_ROLES]})] | None = Field(
        description="Of an operator token and its sessions; null for a join token."
    )
    name: str = Field(description="Whose operator token it is; empty for none.")
    parent: str | None = Field(
        None, description="Of a session: the operator token with which the person signed in."
    )


class TokenList(ApiAnswer):
    """Every join and operator token, the oldest first; no secrets."""

    tokens: tuple[TokenView, ...] = Field(description="The tokens.")
    count: int = Field(description="How many there are.")
