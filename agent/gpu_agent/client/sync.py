"""The client for programs without an event loop: the same claims, renewed in a daemon thread.

    with RegistryClient("https://registry:8081", token=token) as client:
        with client.claim(JobRequest(job_id="train-7", gpu_count=2), wait=120) as claim:
            ...  # run the job on claim.node_id, on claim.gpu_uuids; claim.lost.is_set() says when to stop

One thread runs `gpu_agent.client.aio` for a client; it ends with the client's block. A client may be used
from several threads.
"""

import asyncio
import ssl
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from gpu_agent.client import aio
from gpu_agent.client.errors import ClaimLost, RegistryError, closed
from gpu_agent.wire.api import (
    ClaimDetail,
    ClaimNode,
    ClaimView,
    ExclusionsView,
    ExplanationView,
    JobRequest,
    MemberView,
    NodeDetail,
    NodeExplanation,
    NodeSummary,
    RegistryEvent,
    RenewalResult,
    Selection,
    ThresholdView,
    WaitingJob,
)
from gpu_agent.wire.fleet_documents import FleetFigures, GpuHistoryView
from gpu_agent.wire.service_discovery import EndpointView

_T = TypeVar("_T")


class Claim:
    """A job's claim while a `with` block lasts; `lost` is set as soon as it has ended otherwise."""

    def __init__(
        self, loop: "_LoopThread", client: aio.RegistryClient, job: JobRequest, *, wait: float | None
    ) -> None:
        self.lost = threading.Event()
        """Set once the claim has ended, or may have ended for all that is known here."""
        self._loop = loop
        self._claim = aio.Claim(client, job, wait_seconds=wait, raise_on_loss=False, on_loss=self.lost.set)

    def __enter__(self) -> Self:
        self._loop.call(self._claim.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def loss(self) -> ClaimLost | None:
        """Why it has ended; None while it is held."""
        return self._claim.loss

    @property
    def view(self) -> ClaimView:
        """The claim as the registry answered last."""
        return self._claim.view

    @property
    def claim_id(self) -> str:
        """Names this claim."""
        return self._claim.claim_id

    @property
    def job_id(self) -> str:
        """The job that it is for."""
        return self._claim.job_id

    @property
    def nodes(self) -> tuple[ClaimNode, ...]:
        """Its nodes, each with its GPUs."""
        return self._claim.nodes

    @property
    def node_id(self) -> str:
        """The node of a claim on one node, the first one of a gang."""
        return self._claim.node_id

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """UUIDs of the GPUs on that node."""
        return self._claim.gpu_uuids

    @property
    def endpoint(self) -> str | None:
        """Where that node's worker is reached; None where it states none."""
        return self._claim.endpoint

    def release(self) -> None:
        """Release the claim now rather than at the end of the block; takes 5 seconds at most."""
        self._loop.call(self._claim.release())


class RegistryClient:
    """One registry. Use it as `with RegistryClient(url, token=token) as client`.

    Every method raises `RegistryError`. A request is sent again for `retry_seconds` while the registry
    restarts or is busy; a claim is renewed again for as long as it lives.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        insecure_plaintext: bool = False,
        retry_seconds: float = 10.0,
    ) -> None:
        """Raise `ValueError` for what is no address or no token, or would show the token on the network."""
        self._client = aio.RegistryClient(
            url,
            token=token,
            ssl_context=ssl_context,
            insecure_plaintext=insecure_plaintext,
            retry_seconds=retry_seconds,
        )
        self._loop = _LoopThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the claims that are still held, close the connections, and end the thread.

        What other threads still ask for raises `RegistryError`.
        """
        try:
            with suppress(RegistryError):  # it is closed already
                self._loop.call(self._client.close())
        finally:
            self._loop.end()

    # Claims

    def claim(self, job: JobRequest, *, wait: float | None = None) -> Claim:
        """Claim nodes and GPUs for a job while a `with` block lasts; wait up to `wait` seconds.

        Without `wait` the job's `wait_seconds` count; `ValueError` where both are stated. The same job
        of the same owner gets the claim that it holds. Raises `NoAvailableNode`, `JobIdInUse`.
        """
        return Claim(self._loop, self._client, job, wait=wait)

    def create_claim(self, job: JobRequest, *, wait: float | None = None) -> ClaimView:
        """Claim nodes and GPUs for a job without a block: `renew` it in time, and `release` it.

        Where the call is interrupted or raises `Unreachable`, the outcome is not known: the same job again
        returns its claim, and a claim that nobody renews expires. Otherwise as `claim`.
        """
        return self._loop.call(self._client.create_claim(job, wait=wait))

    def renew(self, job_id: str, claim_id: str, *, ttl_seconds: float | None = None) -> ClaimView:
        """Renew a claim that no block renews; raises `NotFound`, `ClaimSuperseded`."""
        return self._loop.call(self._client.renew(job_id, claim_id, ttl_seconds=ttl_seconds))

    def renew_all(self, claims: Iterable[tuple[str, str]]) -> tuple[RenewalResult, ...]:
        """Renew up to 1,000 claims, each a job id and a claim id; each has a result of its own."""
        return self._loop.call(self._client.renew_all(claims))

    def release(self, job_id: str, claim_id: str, *, reason: str = "") -> None:
        """Release a claim because its job has ended; raises `NotFound`, `ClaimSuperseded`."""
        self._loop.call(self._client.release(job_id, claim_id, reason=reason))

    def claim_of(self, job_id: str) -> ClaimDetail:
        """Return a job's claim with its history, also for an hour after its end; raises `NotFound`."""
        return self._loop.call(self._client.claim_of(job_id))

    def claims(self, *, node_id: str | None = None, ended: bool = False) -> Generator[ClaimView, None, None]:
        """Yield the claims by job, of one node or of all; with `ended` also those of the last hour."""
        return self._loop.iterate(self._client.claims(node_id=node_id, ended=ended))

    def queue(self) -> tuple[WaitingJob, ...]:
        """Return the jobs that wait, in the order in which they get capacity."""
        return self._loop.call(self._client.queue())

    # Dispatch

    def select(self, job: JobRequest) -> Selection:
        """Return what a claim would get now; reserves nothing. Raises `NoAvailableNode`."""
        return self._loop.call(self._client.select(job))

    def explain(self, job: JobRequest, *, limit: int | None = None, offset: int = 0) -> ExplanationView:
        """Return for every node whether it could take a job now, and why not.

        With `limit` so many excluded nodes behind `offset`, the nearest first, each with what would end it.
        """
        return self._loop.call(self._client.explain(job, limit=limit, offset=offset))

    def exclusions(self) -> tuple[ExclusionsView, ...]:
        """Return why jobs found no node in the last hour, by minute."""
        return self._loop.call(self._client.exclusions())

    def members(self) -> tuple[MemberView, ...]:
        """Return the processes that are the registry, the leader first."""
        return self._loop.call(self._client.members())

    def thresholds(self) -> tuple[ThresholdView, ...]:
        """Return the thresholds by which the registry judges nodes and jobs."""
        return self._loop.call(self._client.thresholds())

    # Nodes

    def nodes(
        self,
        *,
        statuses: Iterable[str] = (),
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        gpu_name: str | None = None,
        connected: bool | None = None,
    ) -> Generator[NodeSummary, None, None]:
        """Yield the nodes that match every condition, by id."""
        nodes = self._client.nodes(
            statuses=statuses, model=model, labels=labels, gpu_name=gpu_name, connected=connected
        )
        return self._loop.iterate(nodes)

    def node(self, node_id: str) -> NodeDetail:
        """Return all that the registry knows of a node; raises `NotFound`."""
        return self._loop.call(self._client.node(node_id))

    def find_nodes(
        self, text: str | None = None, *, show: str | None = None, sort: str = "severity"
    ) -> Generator[NodeSummary, None, None]:
        """Yield the nodes that mention a text, or need attention, or have free GPUs, in an order."""
        return self._loop.iterate(self._client.find_nodes(text, show=show, sort=sort))

    def fleet(self) -> FleetFigures:
        """Return the fleet in figures: nodes by status, GPUs by status and model, slots, models."""
        return self._loop.call(self._client.fleet())

    def gpu_history(self, node_id: str) -> tuple[GpuHistoryView, ...]:
        """Return what each GPU of a node did in the last 15 minutes; raises `NotFound`."""
        return self._loop.call(self._client.gpu_history(node_id))

    def node_events(self, node_id: str, *, limit: int = 50) -> tuple[RegistryEvent, ...]:
        """Return a node's latest events, oldest first; raises `NotFound`."""
        return self._loop.call(self._client.node_events(node_id, limit=limit))

    def explain_node(self, node_id: str, *, model: str | None = None) -> NodeExplanation:
        """Return which jobs a node would refuse now, and why; raises `NotFound`."""
        return self._loop.call(self._client.explain_node(node_id, model=model))

    def drain(self, node_id: str, *, deadline_seconds: float | None = None, reason: str = "") -> NodeDetail:
        """Let a node finish its jobs, then take it offline until it is resumed."""
        return self._loop.call(self._client.drain(node_id, deadline_seconds=deadline_seconds, reason=reason))

    def resume(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Return a drained node to service."""
        return self._loop.call(self._client.resume(node_id, reason=reason))

    def cordon(self, node_id: str, *, gpu_uuid: str | None = None, reason: str = "") -> NodeDetail:
        """Give a node, or one GPU of it, no new jobs."""
        return self._loop.call(self._client.cordon(node_id, gpu_uuid=gpu_uuid, reason=reason))

    def uncordon(self, node_id: str, *, gpu_uuid: str | None = None, reason: str = "") -> NodeDetail:
        """End a cordon."""
        return self._loop.call(self._client.uncordon(node_id, gpu_uuid=gpu_uuid, reason=reason))

    def refresh(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Have a node probe again now."""
        return self._loop.call(self._client.refresh(node_id, reason=reason))

    def reregister(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Have a node register again on its open connection."""
        return self._loop.call(self._client.reregister(node_id, reason=reason))

    def check(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Have a node run its admission checks now."""
        return self._loop.call(self._client.check(node_id, reason=reason))

    def remove(self, node_id: str, *, reason: str = "") -> None:
        """Remove a node's record."""
        self._loop.call(self._client.remove(node_id, reason=reason))

    # Workers

    def endpoints(
        self, *, model: str | None = None, labels: Mapping[str, str] | None = None
    ) -> tuple[EndpointView, ...]:
        """Return the workers of ready nodes that match, each with its free slots."""
        return self._loop.call(self._client.endpoints(model=model, labels=labels))

    def watch_endpoints(
        self, *, model: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Generator[tuple[EndpointView, ...], None, None]:
        """Yield the workers now, and again after each change, without end, over restarts too."""
        return self._loop.iterate(self._client.watch_endpoints(model=model, labels=labels))

    # Events

    def events(
        self, *, after: int | None = None, node_id: str | None = None
    ) -> Generator[RegistryEvent, None, None]:
        """Yield every event from now on, or after the one of that id, without end, over restarts too."""
        return self._loop.iterate(self._client.events(after=after, node_id=node_id))


class _Running(Generic[_T]):
    """One coroutine in the loop's thread, awaited from another one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> None:
        self._loop, self._work = loop, work
        self._done = threading.Event()
        self._task: asyncio.Task[_T] | None = None

    def result(self) -> _T:
        """Wait for its result; an exception in the waiting thread, such as Ctrl-C, cancels it first."""
        try:
            self._done.wait()
        finally:
            if not self._done.is_set():
                with suppress(RuntimeError):  # the loop has ended, and every task with it
                    self._loop.call_soon_threadsafe(self._cancel)
                self._done.wait()  # it is bounded: what is cancelled ends within RELEASE_SECONDS
        if self._task is None or self._task.cancelled():
            raise closed()
        return self._task.result()

    def start(self) -> None:
        """Begin, in the loop's thread."""
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(lambda _: self._done.set())

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._ended = False
        """Set before the loop stops: what is started before that still runs in it."""
        self._thread = threading.Thread(target=self._run, name="gpu-agent client", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine and return its result."""
        running = _Running(self._loop, work)
        with self._lock:
            if self._ended:
                work.close()
                raise closed()
            self._loop.call_soon_threadsafe(running.start)
        return running.result()

    def iterate(self, items: AsyncGenerator[_T, None]) -> Generator[_T, None, None]:
        """Yield what an asynchronous generator yields."""
        try:
            while True:
                try:
                    one = self.call(_next(items))
                except _ExhaustedError:
                    return
                yield one
        finally:
            with suppress(RegistryError):
                self.call(items.aclose())

    def end(self) -> None:
        """End the thread."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_end_all_tasks())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _end_all_tasks() -> None:
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class _ExhaustedError(Exception):
    """A generator has no more items; a coroutine cannot raise `StopAsyncIteration`."""


async def _next(items: AsyncGenerator[_T, None]) -> _T:
    try:
        return await anext(items)
    except StopAsyncIteration:
        raise _ExhaustedError from None
