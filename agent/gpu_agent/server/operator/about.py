"""The registry about itself, over HTTP: that it answers, that it can work, and what it judges by."""

from dataclasses import fields

from fastapi import APIRouter, Response

from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server import metrics
from gpu_agent.server.operator.models import Health, Readiness, ThresholdList, ThresholdView
from gpu_agent.server.operator.problems import NOT_READY, Refused
from gpu_agent.server.operator.routes import needs, refusals, subject
from gpu_agent.server.service import RegistryService
from gpu_agent.server.threshold_words import MEANINGS, unit_of
from gpu_agent.version import __version__

_TEXT = {"description": "The figures", "content": {"text/plain": {"schema": {"type": "string"}}}}
_DEFAULTS = Thresholds()


def about_registry(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = subject("registry")

    @router.head("/healthz", include_in_schema=False, openapi_extra=needs("public"))
    @router.get("/healthz", summary="Say that the registry answers", openapi_extra=needs("public"))
    async def show_health() -> Health:
        """Say that the registry answers; for a watchdog that restarts it."""
        size = service.size
        return Health(version=__version__, nodes=size.nodes, connections=size.connections)

    @router.head("/readyz", include_in_schema=False, openapi_extra=needs("public"))
    @router.get(
        "/readyz",
        summary="Say whether the registry can work",
        openapi_extra=needs("public"),
        responses=refusals(503),
    )
    async def show_readiness() -> Readiness:
        """Say whether the registry can do its work; where it cannot, which check fails, and why."""
        checks = service.vitals.readiness()
        failing = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
        if failing:
            raise Refused(NOT_READY, f"the registry is not ready: {'; '.join(failing)}", checks=checks)
        return Readiness(checks=checks)

    @router.get(
        "/metrics",
        summary="Tell the figures to Prometheus",
        openapi_extra=needs("read"),
        response_class=Response,
        responses={200: _TEXT},
    )
    async def show_metrics() -> Response:
        """Tell the registry's figures as Prometheus reads them."""
        told = metrics.exposition(await service.vitals.figures())
        return Response(told, headers={"Content-Type": metrics.CONTENT_TYPE})

    @router.get("/v1/thresholds", summary="Show what the registry judges by", openapi_extra=needs("read"))
    async def show_thresholds() -> ThresholdList:
        """Show every threshold in force, with its unit, its default and what it means."""
        return ThresholdList(
            thresholds=tuple(_shown(service.thresholds, one.name) for one in fields(Thresholds))
        )

    return router


def _shown(thresholds: Thresholds, name: str) -> ThresholdView:
    return ThresholdView(
        name=name,
        value=getattr(thresholds, name),
        unit=unit_of(name),
        default=getattr(_DEFAULTS, name),
        meaning=MEANINGS[name],
    )
