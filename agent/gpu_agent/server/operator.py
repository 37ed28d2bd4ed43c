"""The operators' door: JSON over HTTP, for people's tools and for schedulers in other processes.

One user of the registry's facade; adds nothing to what that can do. Serves on the facade's
own event loop, leaves signals alone, and yields between nodes when it lists a large fleet.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import TypeAdapter

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.claiming import CLAIM_NOT_FOUND
from gpu_agent.registry.dispatch.verdict import NO_AVAILABLE_NODE, NoAvailableNode
from gpu_agent.server.address import Address
from gpu_agent.server.operator_guard import LOOPBACK_NAMES, App, Guard
from gpu_agent.server.operator_models import (
    DrainRequest,
    ExplainRequest,
    ExplanationAnswer,
    Health,
    JobRequest,
    Problem,
    explained,
    nobody_left,
)
from gpu_agent.server.service import RegistryService
from gpu_agent.server.views import NodeDetail, NodeSummary, Placement
from gpu_agent.version import __version__
from gpu_agent.wire.codes import ErrorCode

PROBLEM_JSON = "application/problem+json"
STOP_SECONDS = 2
NODES_BETWEEN_YIELDS = 50

_STATUSES = {
    ErrorCode.UNKNOWN_NODE.value: 404,
    CLAIM_NOT_FOUND: 404,
    ErrorCode.REGISTRY_BUSY.value: 503,
}
_BAD_REQUEST, _CONFLICT, _NOT_FOUND, _METHOD_NOT_ALLOWED = 400, 409, 404, 405
_NODE = TypeAdapter(NodeSummary)


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """Ends a request with a problem document."""

    def __init__(self, code: str, detail: str, **more: object) -> None:
        super().__init__(detail)
        self.code, self.detail, self.more = code, detail, more


class OperatorServer:
    """The operator API on a listening socket."""

    def __init__(self, service: RegistryService, listener: socket.socket, *, address: Address) -> None:
        hosts = {*LOOPBACK_NAMES, address.host} if address.is_loopback else None
        config = uvicorn.Config(
            Guard(application(service), hosts=hosts, refuse=_refusing),
            log_config=None,
            log_level="error",  # what a peer sends wrongly is answered, not logged
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="none",
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
        )
        self._listener = listener
        self._server = _Server(config)

    async def serve(self) -> None:
        """Answer requests until `stop`."""
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Take no new requests, and end soon."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield


def application(service: RegistryService) -> FastAPI:
    """Make the API of one registry."""
    app = FastAPI(title="gpu-agent registry", version=__version__, docs_url="/docs", redoc_url=None)
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for status in (_BAD_REQUEST, _NOT_FOUND, _METHOD_NOT_ALLOWED):
        app.add_exception_handler(status, _on_http)
    for router in (_about_nodes(service), _about_jobs(service)):
        app.include_router(router)
    return app


def _about_nodes(service: RegistryService) -> APIRouter:
    router = APIRouter()

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> Health:
        """Say that the registry answers."""
        size = service.size
        return Health(version=__version__, nodes=size.nodes, connections=size.connections)

    @router.get("/v1/nodes", responses={200: {"model": dict[str, list[NodeSummary]]}})
    async def nodes() -> StreamingResponse:
        """List every node with its status and the reason for it."""
        return StreamingResponse(_written(service.nodes()), media_type="application/json")

    @router.get("/v1/nodes/{node_id}")
    async def node(node_id: str) -> NodeDetail:
        """Show all that is known of a node."""
        return _known(service, node_id)

    @router.post("/v1/nodes/{node_id}/drain")
    async def drain(node_id: str, asked: DrainRequest) -> NodeDetail:
        """Let a node finish its jobs, then take it offline."""
        _unless_refused(
            await service.drain(node_id, deadline_seconds=asked.deadline_seconds, reason=asked.reason)
        )
        return _known(service, node_id)

    @router.post("/v1/nodes/{node_id}/resume")
    async def resume(node_id: str) -> NodeDetail:
        """Take a drained node back."""
        _unless_refused(await service.resume(node_id))
        return _known(service, node_id)

    return router


def _about_jobs(service: RegistryService) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/dispatch/explain")
    async def explain(asked: ExplainRequest) -> ExplanationAnswer:
        """Say of every node whether it could take a job, and why not; reserves nothing."""
        return explained(service.explain(asked.job()))

    @router.post("/v1/claims", responses={_CONFLICT: {"model": Problem}})
    async def claim(asked: JobRequest) -> Placement:
        """Reserve a place for a job; the same job again gets the same place."""
        return _placed(await service.claim(asked.job()))

    @router.post("/v1/claims/{job_id:path}/renew")
    async def renew(job_id: str) -> Placement:
        """Keep a job's place for one more TTL."""
        return _placed(await service.renew(job_id))

    @router.delete("/v1/claims/{job_id:path}", status_code=204)
    async def release(job_id: str) -> None:
        """Give a job's place back."""
        _unless_refused(await service.release(job_id))

    return router


async def _written(nodes: Iterator[NodeSummary]) -> AsyncIterator[bytes]:
    """Write a list piece by piece, so that ten thousand nodes keep nobody waiting."""
    separator = b'{"nodes":['
    for count, node in enumerate(nodes):
        yield separator + _NODE.dump_json(node)
        separator = b","
        if count % NODES_BETWEEN_YIELDS == 0:
            await asyncio.sleep(0)
    yield b"]}" if separator == b"," else separator + b"]}"


def _known(service: RegistryService, node_id: str) -> NodeDetail:
    node = service.node(node_id)
    if node is None:
        raise Refused(
            ErrorCode.UNKNOWN_NODE.value,
            f"no node {node_id!r} is known: `gpu-agent registry nodes` lists them",
        )
    return node


def _unless_refused(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise Refused(refusal.code, refusal.message)


def _placed(answer: Placement | NoAvailableNode | Refusal) -> Placement:
    if isinstance(answer, NoAvailableNode):
        raise Refused(NO_AVAILABLE_NODE, _nobody(answer), **nobody_left(answer))
    if isinstance(answer, Refusal):
        raise Refused(answer.code, answer.message)
    return answer


def _nobody(verdict: NoAvailableNode) -> str:
    if not verdict.counts:
        return "no node has ever registered: start an agent with `gpu-agent run --registry URL`"
    counted = ", ".join(f"{count} {reason.value}" for reason, count in verdict.counts.items())
    return f"no node can take this job ({counted}): `gpu-agent registry explain` says why, node by node"


def _problem(status: int, code: str, detail: str, **more: object) -> JSONResponse:
    title = code.replace("_", " ").capitalize()
    problem = Problem.model_validate(
        {"status": status, "title": title, "code": code, "detail": detail, **more}
    )
    return JSONResponse(problem.model_dump(), status_code=status, media_type=PROBLEM_JSON)


def _refusing(status: int, code: str, detail: str) -> App:
    return _problem(status, code, detail)


async def _on_refused(_: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)  # noqa: S101 - registered for nothing else
    return _problem(_STATUSES.get(refused.code, _CONFLICT), refused.code, refused.detail, **refused.more)


async def _on_invalid(_: Request, invalid: Exception) -> Response:
    assert isinstance(invalid, RequestValidationError)  # noqa: S101 - registered for nothing else
    errors = [_fault(one) for one in invalid.errors()]
    detail = "the request cannot be read: " + "; ".join(f"{one['path']}: {one['problem']}" for one in errors)
    return _problem(422, "INVALID_REQUEST", detail, errors=errors)


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    """Name the place and the problem; where a body is no JSON at all, the place is the whole."""
    if error["type"] == "json_invalid":
        return {"path": "$", "problem": f"not valid JSON: {error.get('ctx', {}).get('error', error['msg'])}"}
    return {"path": ".".join(["$", *map(str, error["loc"][1:])]), "problem": error["msg"]}


async def _on_http(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", _NOT_FOUND)
    if status == _BAD_REQUEST:
        return _problem(status, "INVALID_REQUEST", "the request cannot be read: $: not valid JSON")
    code = "METHOD_NOT_ALLOWED" if status == _METHOD_NOT_ALLOWED else "NOT_FOUND"
    detail = f"there is no {request.method} {request.url.path} here: /docs lists what there is"
    return _problem(status, code, detail)
