"""The registry itself over HTTP: health, readiness, metrics, thresholds and backup."""

import tempfile
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter, Response
from fastapi.responses import Response as responses_Response
from fastapi.responses import StreamingResponse

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.server import metrics
from gpu_agent.server.api.auth import api_router, needs, refusals
from gpu_agent.server.api.errors import BACKUP_FAILED, NOT_READY, NOTHING_TO_BACK_UP, ApiError
from gpu_agent.server.api.schemas import EmptyRequest, Health, Readiness, ThresholdList, ThresholdView
from gpu_agent.server.service import RegistryService
from gpu_agent.server.settings import MEANINGS, unit_of
from gpu_agent.store.base import NothingToBackUpError, StoreError
from gpu_agent.version import __version__

# The registry about itself, over HTTP: that it answers, that it can work, and what it judges by.


_TEXT = {"description": "The figures", "content": {"text/plain": {"schema": {"type": "string"}}}}
_DEFAULTS = Thresholds()


def registry_routes(service: RegistryService) -> APIRouter:
    """Make the routes."""
    router = api_router("registry")

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
        checks = service.health.readiness()
        failing = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
        if failing:
            raise ApiError(NOT_READY, f"the registry is not ready: {'; '.join(failing)}", checks=checks)
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
        told = metrics.exposition(await service.health.figures())
        return Response(told, headers={"Content-Type": metrics.CONTENT_TYPE})

    @router.get("/v1/thresholds", summary="Show what the registry judges by", openapi_extra=needs("read"))
    async def show_thresholds() -> ThresholdList:
        """Show every threshold in force, with its unit, its default and what it means."""
        return ThresholdList(
            thresholds=tuple(_threshold_view(service.thresholds, one.name) for one in fields(Thresholds))
        )

    return router


def _threshold_view(thresholds: Thresholds, name: str) -> ThresholdView:
    return ThresholdView(
        name=name,
        value=getattr(thresholds, name),
        unit=unit_of(name),
        default=getattr(_DEFAULTS, name),
        meaning=MEANINGS[name],
    )


# A backup of the registry's database over HTTP: streamed to whoever asks, so that it lies where they are.
#
# A copy is made first, beside no file of the registry's, and goes with the answer's end. Names no
# place on the registry's machine.


MEDIA_TYPE = "application/vnd.sqlite3"
READ_SECONDS = 30.0
"""A disk that takes longer for one piece breaks the answer off, which whoever asked can see."""

_PIECE_BYTES = 1024 * 1024
_NOTHING = EmptyRequest()


def backup_routes(service: RegistryService) -> APIRouter:
    """Make the route."""
    router = api_router("registry")

    @router.post(
        "/v1/backup",
        summary="Back the registry up",
        openapi_extra=needs("admin"),
        response_class=responses_Response,
        responses={
            200: {
                "description": "The database, whole",
                "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            },
            **refusals(409, 503),
        },
    )
    async def backup_registry(_: EmptyRequest = _NOTHING) -> StreamingResponse:
        """Stream a copy of all that is kept at this moment: a database for `gpu-agent registry restore`."""
        folder = tempfile.TemporaryDirectory(prefix="gpu-registry-backup-")
        copy = Path(folder.name) / "registry.db"
        try:
            await service.backup(copy)
            file, size = copy.open("rb"), copy.stat().st_size
        except StoreError as error:
            folder.cleanup()
            lacks = isinstance(error, NothingToBackUpError)
            raise ApiError(NOTHING_TO_BACK_UP if lacks else BACKUP_FAILED, str(error)) from None
        return StreamingResponse(
            _file_pieces(file, folder),
            media_type=MEDIA_TYPE,
            headers={
                "Content-Length": str(size),
                "Content-Disposition": 'attachment; filename="registry.db"',
                "Cache-Control": "no-store",
            },
        )

    return router


async def _file_pieces(file: BinaryIO, folder: "tempfile.TemporaryDirectory[str]") -> AsyncIterator[bytes]:
    with folder, file:
        while piece := await in_thread(
            "backup", lambda: file.read(_PIECE_BYTES), deadline_seconds=READ_SECONDS
        ):
            yield piece
