"""Tokens over HTTP: create, list and revoke them, rotate a node's token, reclaim a node's id.

Only the answer to a creation holds the secret.
"""

from typing import Annotated, cast

from fastapi import Request, Response
from pydantic import Field

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.tokens import Role
from gpu_agent.server.api.auth import Caller
from gpu_agent.server.api.errors import ApiError, once_stored, raise_if_refused, refuse_body
from gpu_agent.server.api.nodes import changed_node
from gpu_agent.server.api.routing import NodeId, Registry, TokenId, api_router, needs, refusals
from gpu_agent.wire.api import (
    EmptyRequest,
    JoinTokenRequest,
    NewToken,
    NodeDetail,
    OperatorTokenRequest,
    ReclaimRequest,
    RotationRequest,
    SignInLink,
    TokenList,
)

TokenRequest = Annotated[JoinTokenRequest | OperatorTokenRequest, Field(discriminator="kind")]

router = api_router("tokens")
_EMPTY = EmptyRequest()


@router.get("/v1/tokens", summary="List tokens", openapi_extra=needs("admin"))
async def list_tokens(registry: Registry) -> TokenList:
    """List join and operator tokens, the oldest first, expired and revoked ones too; never a secret."""
    tokens = await once_stored(registry, registry.tokens.all())
    return TokenList(tokens=tokens, count=len(tokens))


@router.post(
    "/v1/tokens",
    summary="Create a token",
    status_code=201,
    openapi_extra=needs("admin"),
)
async def create_token(request: TokenRequest, response: Response, registry: Registry) -> NewToken:
    """Create a join or an operator token. Its secret is in this answer and never again."""
    if isinstance(request, JoinTokenRequest):
        created = await registry.tokens.create_join(
            ttl_seconds=request.ttl_seconds,
            uses=request.uses,
            labels=request.labels,
            note=request.note,
            node_id=request.node_id,
        )
    else:
        created = await registry.tokens.create_operator(
            Role(request.role), name=request.name, ttl_seconds=request.ttl_seconds
        )
    return _created(created, response)


@router.post(
    "/v1/sign-in-links",
    summary="Create a link to the fleet page",
    status_code=201,
    openapi_extra=needs("read"),
)
async def create_sign_in_link(
    request: Request, response: Response, *, registry: Registry, _: EmptyRequest = _EMPTY
) -> SignInLink:
    """Create a link that signs a browser of the registry's own machine in, once and within five minutes.

    The session has the role of the token that asks, and ends with it.
    """
    credential = cast("Caller", request.state.caller).credential
    response.headers["Cache-Control"] = "no-store"
    return registry.tokens.create_sign_in_link(credential)


@router.delete(
    "/v1/tokens/{token_id}",
    summary="Revoke a token",
    status_code=204,
    openapi_extra=needs("admin"),
    responses=refusals(404),
)
async def revoke_token(token_id: TokenId, *, request: Request, registry: Registry) -> None:
    """Revoke a join or operator token; nodes that joined with it stay."""
    await refuse_body(
        request, lambda: registry.tokens.known(token_id), instead="`token_id` in the path names the token"
    )
    raise_if_refused(await registry.tokens.revoke(token_id))


@router.post(
    "/v1/nodes/{node_id}/reclaim",
    summary="Create a token to reclaim a node's id",
    status_code=201,
    openapi_extra=needs("admin"),
    responses=refusals(404),
)
async def reclaim_node(
    node_id: NodeId, request: ReclaimRequest, *, response: Response, registry: Registry
) -> NewToken:
    """Create a token with which a node that lost its state gets this id again, once."""
    return _created(await registry.tokens.reclaim(node_id, ttl_seconds=request.ttl_seconds), response)


@router.post(
    "/v1/nodes/{node_id}/rotate",
    summary="Replace a node's token",
    openapi_extra=needs("admin"),
    responses=refusals(404, 409),
)
async def rotate_node_token(node_id: NodeId, request: RotationRequest, registry: Registry) -> NodeDetail:
    """Issue a new token to a node; only the node receives it."""
    refusal = await registry.tokens.rotate(node_id, revoke_now=request.revoke_now)
    return await changed_node(registry, node_id, refusal)


def _created(created: NewToken | Refusal, response: Response) -> NewToken:
    if isinstance(created, Refusal):
        raise ApiError(created.code, created.message)
    response.headers["Cache-Control"] = "no-store"
    return created
