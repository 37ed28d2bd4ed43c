"""The registry about itself, over HTTP: that it answers, and what it judges by."""

from fastapi import APIRouter

from gpu_agent.server.operator_models import Health
from gpu_agent.server.operator_routes import needs, subject
from gpu_agent.server.service import RegistryService
from gpu_agent.version import __version__


def about_registry(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = subject("registry")

    @router.head("/healthz", include_in_schema=False, openapi_extra=needs("public"))
    @router.get("/healthz", summary="Say that the registry answers", openapi_extra=needs("public"))
    async def show_health() -> Health:
        """Say that the registry answers; for a watchdog that restarts it."""
        size = service.size
        return Health(version=__version__, nodes=size.nodes, connections=size.connections)

    return router
