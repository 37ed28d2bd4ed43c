"""A backup of the registry's database over HTTP: streamed to whoever asks, so that it lies where they are.

A copy is made first, beside no file of the registry's, and goes with the answer's end. Names no
place on the registry's machine.
"""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from gpu_agent.runtime.tasks import in_thread
from gpu_agent.server.operator.models import NothingMore
from gpu_agent.server.operator.problems import BACKUP_FAILED, NOTHING_TO_BACK_UP, Refused
from gpu_agent.server.operator.routes import needs, refusals, subject
from gpu_agent.server.service import RegistryService
from gpu_agent.store.base import NothingToBackUpError, StoreError

MEDIA_TYPE = "application/vnd.sqlite3"
READ_SECONDS = 30.0
"""A disk that takes longer for one piece breaks the answer off, which whoever asked can see."""

_PIECE_BYTES = 1024 * 1024
_NOTHING = NothingMore()


def about_backup(service: RegistryService) -> APIRouter:
    """Make the route."""
    router = subject("registry")

    @router.post(
        "/v1/backup",
        summary="Back the registry up",
        openapi_extra=needs("admin"),
        response_class=Response,
        responses={
            200: {
                "description": "The database, whole",
                "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            },
            **refusals(409, 503),
        },
    )
    async def backup_registry(_: NothingMore = _NOTHING) -> StreamingResponse:
        """Stream a copy of all that is kept at this moment: a database for `gpu-agent registry restore`."""
        folder = tempfile.TemporaryDirectory(prefix="gpu-registry-backup-")
        copy = Path(folder.name) / "registry.db"
        try:
            await service.backup(copy)
            file, size = copy.open("rb"), copy.stat().st_size
        except StoreError as error:
            folder.cleanup()
            lacks = isinstance(error, NothingToBackUpError)
            raise Refused(NOTHING_TO_BACK_UP if lacks else BACKUP_FAILED, str(error)) from None
        return StreamingResponse(
            _pieces(file, folder),
            media_type=MEDIA_TYPE,
            headers={
                "Content-Length": str(size),
                "Content-Disposition": 'attachment; filename="registry.db"',
                "Cache-Control": "no-store",
            },
        )

    return router


async def _pieces(file: BinaryIO, folder: "tempfile.TemporaryDirectory[str]") -> AsyncIterator[bytes]:
    with folder, file:
        while piece := await in_thread(
            "backup", lambda: file.read(_PIECE_BYTES), deadline_seconds=READ_SECONDS
        ):
            yield piece
