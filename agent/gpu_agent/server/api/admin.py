"""The registry itself over HTTP: health, readiness, metrics, thresholds, receivers of alarms and backup."""

import pathlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Annotated, BinaryIO, cast

from fastapi import Path, Request
from fastapi.responses import Response, StreamingResponse

from gpu_agent.registry.settings import Admission, Thresholds
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.server import metrics
from gpu_agent.server.api.errors import ApiError
from gpu_agent.server.api.instance import Here
from gpu_agent.server.api.routing import Registry, api_router, needs, refusals
from gpu_agent.server.settings import THRESHOLD_UNITS, threshold_meaning
from gpu_agent.store.base import NothingToBackUpError, StoreError
from gpu_agent.version import __version__
from gpu_agent.wire.api import EmptyRequest, HealthAnswer, MemberList, Readiness, ThresholdList, ThresholdView
from gpu_agent.wire.notification import ReceiverList, ReceiverTest

BACKUP_MEDIA_TYPE = "application/vnd.sqlite3"
READ_SECONDS = 30.0
"""A disk that takes longer for one piece of a backup ends the answer early; the client sees that."""

_PIECE_BYTES = 1024 * 1024
_EMPTY = EmptyRequest()
_DEFAULTS = Thresholds()
_METRICS = {"description": "The metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
_BACKUP = {
    "description": "The database, whole",
    "content": {BACKUP_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}

ReceiverName = Annotated[
    str, Path(min_length=1, max_length=64, description="A receiver's name in the settings.")
]

router = api_router("registry")


@router.head("/healthz", include_in_schema=False, openapi_extra=needs("public"))
@router.get("/healthz", summary="Check that the registry answers", openapi_extra=needs("public"))
async def show_health(request: Request) -> HealthAnswer:
    """Check that the registry answers; for a watchdog that restarts it."""
    size = _here(request).size
    return HealthAnswer(version=__version__, nodes=size.nodes, connections=size.connections)


@router.head("/readyz", include_in_schema=False, openapi_extra=needs("public"))
@router.get(
    "/readyz",
    summary="Check that the registry can work",
    openapi_extra=needs("public"),
)
async def show_readiness(request: Request) -> Readiness:
    """Check that the registry can work; where it cannot, show which check fails, and why."""
    checks = _here(request).readiness()
    failing = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if failing:
        raise ApiError("NOT_READY", f"the registry is not ready: {'; '.join(failing)}", checks=checks)
    return Readiness(checks=checks)


@router.get(
    "/metrics",
    summary="Show the metrics for Prometheus",
    openapi_extra=needs("read"),
    response_class=Response,
    responses={200: _METRICS},
)
async def show_metrics(request: Request) -> Response:
    """Show the registry's metrics in Prometheus' text format."""
    return Response(await _here(request).exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})


@router.get("/v1/members", summary="Show the registry's processes", openapi_extra=needs("read"))
async def show_members(request: Request) -> MemberList:
    """Show the processes that are this registry: which leads, and how many node connections each holds.

    Without a leader an instance answers from its own copy what it knows: names, and its own connections.
    """
    return MemberList(members=_here(request).members())


@router.get("/v1/thresholds", summary="Show the thresholds", openapi_extra=needs("read"))
async def show_thresholds(registry: Registry) -> ThresholdList:
    """Show every threshold in force, with its unit, its default and its meaning."""
    return ThresholdList(
        thresholds=tuple(_threshold(registry.thresholds, one.name) for one in fields(Thresholds))
    )


@router.get("/v1/receivers", summary="List the receivers of alarms", openapi_extra=needs("read"))
async def list_receivers(registry: Registry) -> ReceiverList:
    """List the receivers of alarms in the order of the settings: what each got, and why one fails."""
    return ReceiverList(receivers=registry.notifier.views())


@router.post(
    "/v1/receivers/{name}/test",
    summary="Send a receiver a test message",
    openapi_extra=needs("operate"),
    responses=refusals(404),
)
async def try_receiver(
    name: ReceiverName,
    registry: Registry,
    _: EmptyRequest = _EMPTY,
) -> ReceiverTest:
    """Send a receiver of alarms a test message now, and answer what it made of it."""
    outcome = await registry.notifier.test(name)
    if outcome is None:
        raise ApiError("UNKNOWN_RECEIVER", f"no receiver of alarms is called {name!r}: see GET /v1/receivers")
    return outcome


def _here(request: Request) -> Here:
    return cast("Here", request.app.state.here)


def _threshold(thresholds: Thresholds, name: str) -> ThresholdView:
    value, default = getattr(thresholds, name), getattr(_DEFAULTS, name)
    unit, meaning = THRESHOLD_UNITS[name], threshold_meaning(name)
    if isinstance(value, Admission):
        name, unit = "admission.required_checks", "checks"
        value, default = value.required_checks, default.required_checks
    return ThresholdView(name=name, value=value, unit=unit, default=default, meaning=meaning)


@router.post(
    "/v1/backup",
    summary="Back up the registry",
    openapi_extra=needs("admin"),
    response_class=Response,
    responses={200: _BACKUP, **refusals(409)},
)
async def backup_registry(registry: Registry, _: EmptyRequest = _EMPTY) -> StreamingResponse:
    """Stream a copy of everything that is stored now: a database for `gpu-agent registry restore`.

    The copy is made in a temporary directory, which is removed with the end of the answer.
    """
    folder = tempfile.TemporaryDirectory(prefix="gpu-registry-backup-")
    copy = pathlib.Path(folder.name) / "registry.db"
    try:
        await registry.backup(copy)
        file, size = copy.open("rb"), copy.stat().st_size
    except StoreError as error:
        folder.cleanup()
        nothing = isinstance(error, NothingToBackUpError)
        raise ApiError("NOTHING_TO_BACK_UP" if nothing else "BACKUP_FAILED", str(error)) from None
    return StreamingResponse(
        _read_pieces(file, folder),
        media_type=BACKUP_MEDIA_TYPE,
        headers={
            "Content-Length": str(size),
            "Content-Disposition": 'attachment; filename="registry.db"',
            "Cache-Control": "no-store",
        },
    )


async def _read_pieces(file: BinaryIO, folder: "tempfile.TemporaryDirectory[str]") -> AsyncIterator[bytes]:
    with folder, file:
        while piece := await in_thread(
            "backup", lambda: file.read(_PIECE_BYTES), deadline_seconds=READ_SECONDS
        ):
            yield piece
