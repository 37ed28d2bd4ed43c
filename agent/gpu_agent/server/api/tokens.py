"""Tokens over HTTP: create, list and revoke them, rotate a node's token, reclaim a node's id.

The answer to a creation is the only one that holds the secret.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import Field, StrictBool, StringConstraints

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.credentials import Role
from gpu_agent.server.api.auth import api_router, needs, refusals
from gpu_agent.server.api.errors import ApiError, raise_if_refused, read_stored
from gpu_agent.server.api.nodes import node_or_404
from gpu_agent.server.api.schemas import WHOLE, ApiModel, Labels, NodeId, TokenId
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tokens import (
    DAY_SECONDS,
    LONGEST_NOTE,
    LONGEST_TTL_SECONDS,
    MOST_USES,
    NewToken,
    TokenView,
)
from gpu_agent.server.views import NodeDetail
from gpu_agent.wire.messages import NodeId as WireNodeId

_CREATED, _NOT_FOUND, _CONFLICT, _BUSY = 201, 404, 409, 503

Ttl = Annotated[float, Field(strict=True, gt=0, le=LONGEST_TTL_SECONDS, allow_inf_nan=False)]
Note = Annotated[str, StringConstraints(max_length=LONGEST_NOTE)]


class JoinTokenRequest(ApiModel):
    """A token by which nodes join."""

    kind: Literal["join"]
    ttl_seconds: Ttl | None = DAY_SECONDS
    """How long it opens anything; null: for ever."""
    uses: Annotated[int, Field(strict=True, ge=1, le=MOST_USES), WHOLE] | None = 1
    """How many nodes may join by it; null: any number."""
    labels: Labels = Field(default_factory=dict)
    """Granted to the nodes that join by it."""
    note: Note = ""
    node_id: WireNodeId | None = None
    """The only node that may come by it, known or not; null: any."""


class OperatorTokenRequest(ApiModel):
    """A token for a person or a program that uses this API."""

    kind: Literal["operator"]
    role: Role
    name: Note = ""
    """Whose it is."""
    ttl_seconds: Ttl | None = None


TokenRequest = Annotated[JoinTokenRequest | OperatorTokenRequest, Field(discriminator="kind")]


class ReclaimRequest(ApiModel):
    """How long a node that lost its state may take to come back."""

    ttl_seconds: Ttl | None = DAY_SECONDS


class RotationRequest(ApiModel):
    """How a node's token is to be replaced."""

    at_once: StrictBool = False
    """End the old token before the node has the new one."""


class TokenList(ApiModel):
    """Every join and operator token, the oldest first; no secrets."""

    tokens: tuple[TokenView, ...]
    count: int


def token_routes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = api_router("tokens")

    @router.get("/v1/tokens", summary="List tokens", openapi_extra=needs("admin"), responses=refusals(_BUSY))
    async def list_tokens() -> TokenList:
        """List join and operator tokens, the oldest first, those that have ended too; never a secret."""
        tokens = await read_stored(service, service.tokens.listed)
        return TokenList(tokens=tokens, count=len(tokens))

    @router.post(
        "/v1/tokens",
        summary="Make a token",
        status_code=_CREATED,
        openapi_extra=needs("admin"),
        responses=refusals(_BUSY),
    )
    async def create_token(asked: TokenRequest, response: Response) -> NewToken:
        """Make a join or an operator token. Its secret is told in this answer and never again."""
        if isinstance(asked, JoinTokenRequest):
            made = await service.tokens.create_join(
                ttl_seconds=asked.ttl_seconds,
                uses=asked.uses,
                labels=asked.labels,
                note=asked.note,
                node_id=asked.node_id,
            )
        else:
            made = await service.tokens.create_operator(
                asked.role, name=asked.name, ttl_seconds=asked.ttl_seconds
            )
        return _new_token_answer(made, response)

    @router.delete(
        "/v1/tokens/{token_id}",
        summary="Revoke a token",
        status_code=204,
        openapi_extra=needs("admin"),
        responses=refusals(_NOT_FOUND, _BUSY),
    )
    async def revoke_token(token_id: TokenId) -> None:
        """End a join or operator token; nodes that joined by it stay."""
        raise_if_refused(await service.tokens.revoke(token_id))

    @router.post(
        "/v1/nodes/{node_id}/reclaim",
        summary="Give a node its id back",
        status_code=_CREATED,
        openapi_extra=needs("admin"),
        responses=refusals(_NOT_FOUND, _BUSY),
    )
    async def reclaim_node(node_id: NodeId, asked: ReclaimRequest, response: Response) -> NewToken:
        """Make a token by which a node that lost its state gets this id back, once."""
        return _new_token_answer(
            await service.tokens.reclaim(node_id, ttl_seconds=asked.ttl_seconds), response
        )

    @router.post(
        "/v1/nodes/{node_id}/rotate",
        summary="Replace a node's token",
        openapi_extra=needs("admin"),
        responses=refusals(_NOT_FOUND, _CONFLICT, _BUSY),
    )
    async def rotate_node_token(node_id: NodeId, asked: RotationRequest) -> NodeDetail:
        """Give a node another token, of which only the node is told."""
        raise_if_refused(await service.tokens.rotate(node_id, at_once=asked.at_once))
        return await read_stored(service, lambda: node_or_404(service, node_id))

    return router


def _new_token_answer(made: NewToken | Refusal, response: Response) -> NewToken:
    if isinstance(made, Refusal):
        raise ApiError(made.code, made.message)
    response.headers["Cache-Control"] = "no-store"
    return made
