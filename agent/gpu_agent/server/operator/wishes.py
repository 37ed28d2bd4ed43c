"""What operators wish of a node, over HTTP: empty it, close it, take it back, let it go.

Each is answered once it is saved, with the node as it then stands.
"""

from fastapi import APIRouter

from gpu_agent.server.operator.models import CordonRequest, DrainRequest, NothingMore
from gpu_agent.server.operator.nodes import known
from gpu_agent.server.operator.paths import NodeId
from gpu_agent.server.operator.problems import unless_refused
from gpu_agent.server.operator.reads import kept
from gpu_agent.server.operator.routes import needs, refusals, subject
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeDetail

_NOTHING = NothingMore()


def about_wishes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = subject("nodes")

    @router.post(
        "/v1/nodes/{node_id}/drain",
        summary="Drain a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def drain_node(node_id: NodeId, asked: DrainRequest) -> NodeDetail:
        """Let a node finish its jobs, then take it offline until it is resumed."""
        unless_refused(
            await service.drain(node_id, deadline_seconds=asked.deadline_seconds, reason=asked.reason)
        )
        return await kept(service, lambda: known(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/resume",
        summary="Resume a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def resume_node(node_id: NodeId, _: NothingMore = _NOTHING) -> NodeDetail:
        """Take a drained node back."""
        unless_refused(await service.resume(node_id))
        return await kept(service, lambda: known(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/cordon",
        summary="Cordon a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def cordon_node(node_id: NodeId, asked: CordonRequest) -> NodeDetail:
        """Give a node no new jobs; its status stays."""
        unless_refused(await service.cordon(node_id, reason=asked.reason))
        return await kept(service, lambda: known(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/uncordon",
        summary="Uncordon a node",
        openapi_extra=needs("operate"),
        responses=refusals(404, 503),
    )
    async def uncordon_node(node_id: NodeId, _: NothingMore = _NOTHING) -> NodeDetail:
        """Lift a cordon."""
        unless_refused(await service.uncordon(node_id))
        return await kept(service, lambda: known(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/refresh",
        summary="Have a node probe again",
        openapi_extra=needs("operate"),
        responses=refusals(404, 409, 503),
    )
    async def refresh_node(node_id: NodeId, _: NothingMore = _NOTHING) -> NodeDetail:
        """Have a node probe again now, and tell all that it finds with its next beat."""
        unless_refused(await service.refresh(node_id))
        return await kept(service, lambda: known(service, node_id))

    @router.post(
        "/v1/nodes/{node_id}/reregister",
        summary="Have a node register again",
        openapi_extra=needs("operate"),
        responses=refusals(404, 409, 503),
    )
    async def reregister_node(node_id: NodeId, _: NothingMore = _NOTHING) -> NodeDetail:
        """Have a node register again on its open connection."""
        unless_refused(await service.reregister(node_id))
        return await kept(service, lambda: known(service, node_id))

    @router.delete(
        "/v1/nodes/{node_id}",
        summary="Forget a node",
        status_code=204,
        openapi_extra=needs("admin"),
        responses=refusals(404, 503),
    )
    async def forget_node(node_id: NodeId) -> None:
        """Let a node's record go; a node that still lives is sent away first, and may register anew."""
        unless_refused(await service.forget(node_id))

    return router
