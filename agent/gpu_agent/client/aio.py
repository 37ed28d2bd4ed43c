"""The client for programs with an event loop; `gpu_agent.client.sync` runs it in a thread for others."""

import asyncio
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from gpu_agent.client import routes
from gpu_agent.client.errors import (
    CLAIM_EXPIRED,
    Busy,
    ClaimLost,
    ClaimSuperseded,
    NoAvailableNode,
    NotFound,
    RegistryError,
    Unreachable,
)
from gpu_agent.client.transport import (
    LONGEST_DELAY_SECONDS,
    REQUEST_SECONDS,
    Backoff,
    Opened,
    Transport,
    may_repeat,
)
from gpu_agent.wire.api import (
    ClaimDetail,
    ClaimName,
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
from gpu_agent.wire.lease import END_CODES, END_EVENTS, Lease, is_worth_asking_again
from gpu_agent.wire.service_discovery import EndpointView

LONGEST_WAIT_SECONDS = 60.0
"""Of one request in the queue: a connection that broke unnoticed costs no more. The job keeps its place."""
RELEASE_SECONDS = 5.0
"""How long the end of a block may take to release its claim."""

_ENDED_REMEMBERED = 1024
_MISSED = "events_missed"
_LOG = logging.getLogger("gpu_agent.client")
_T = TypeVar("_T")


class Claim:
    """A job's claim while a block lasts: reserved at its beginning, renewed in it, released at its end.

    `await lost.wait()` returns as soon as the claim has ended otherwise; `loss` then says why. The block
    goes on, because its job may still run, unless `raise_on_loss` asks for `ClaimLost` in it.
    """

    def __init__(
        self,
        client: "RegistryClient",
        job: JobRequest,
        *,
        wait_seconds: float | None,
        raise_on_loss: bool,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self._client, self._job = client, job
        self._wait_seconds, self._raise_on_loss, self._on_loss = wait_seconds, raise_on_loss, on_loss
        self._granted: ClaimView | None = None
        self._lease = Lease(0.0, 0.0)
        self._due = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling, self._interrupted = 0, False
        self.lost = asyncio.Event()
        """Set once the claim has ended, or may have ended for all that is known here."""
        self.loss: ClaimLost | None = None
        """Why it has ended."""

    async def __aenter__(self) -> Self:
        self._granted, self._lease = await self._client.acquire(self._job, wait_seconds=self._wait_seconds)
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._renewing = asyncio.get_running_loop().create_task(
            self._renew_while_held(), name=f"renew {self.job_id}"
        )
        self._renewing.add_done_callback(self._renewing_ended)
        self._client.hold(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        outcome = error
        try:
            await self.release()
        except asyncio.CancelledError as cancelled:
            outcome = cancelled
        if task is not None and self._interrupted and self.loss is not None:
            ours_alone = task.uncancel() <= self._cancelling
            if ours_alone and (outcome is None or isinstance(outcome, asyncio.CancelledError)):
                raise self.loss from outcome
        if outcome is not None and outcome is not error:
            raise outcome

    @property
    def view(self) -> ClaimView:
        """The claim as the registry answered last."""
        if self._granted is None:
            raise RuntimeError("the claim is not made yet: use it in `async with client.claim(job) as claim`")
        return self._granted

    @property
    def claim_id(self) -> str:
        """Names this claim."""
        return self.view.claim_id

    @property
    def job_id(self) -> str:
        """The job that it is for."""
        return self._job.job_id

    @property
    def nodes(self) -> tuple[ClaimNode, ...]:
        """Its nodes, each with its GPUs."""
        return self.view.nodes

    @property
    def node_id(self) -> str:
        """The node of a claim on one node, the first one of a gang."""
        return self.view.nodes[0].node_id

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """UUIDs of the GPUs on that node."""
        return self.view.nodes[0].gpu_uuids

    @property
    def endpoint(self) -> str | None:
        """Where that node's worker is reached; None where it states none."""
        return self.view.nodes[0].endpoint

    def check(self) -> None:
        """Renew at once, to learn whether the registry still has the claim."""
        self._due.set()

    def lose(self, loss: ClaimLost) -> None:
        """Note why the claim has ended, and report it, once."""
        if self.loss is not None or self._granted is None:
            return
        self.loss = loss
        self.lost.set()
        if self._on_loss is not None:
            self._on_loss()
        if self._raise_on_loss and self._task is not None:
            self._interrupted = self._task.cancel()

    async def release(self) -> None:
        """Release the claim now rather than at the end of the block; takes 5 seconds at most."""
        renewing, self._renewing = self._renewing, None
        if renewing is None:
            return
        renewing.cancel()
        self._client.let_go(self)
        await _finish(self._release(renewing))

    async def _release(self, renewing: asyncio.Task[None]) -> None:
        await asyncio.wait({renewing})
        await self._client.release_within(self.job_id, self.claim_id, seconds=RELEASE_SECONDS)

    async def _renew_while_held(self) -> None:
        """Renew in time until the block ends, also after a loss: a lost claim may be attached again."""
        while not isinstance(self.loss, ClaimSuperseded):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._loop_time(self._lease.renew_at)):
                    await self._due.wait()
            self._due.clear()
            await self._renew()

    async def _renew(self) -> None:
        backoff = Backoff()
        while True:
            sent_at = time.monotonic()
            left = self._lease.expires_at - sent_at
            try:
                renewed = await self._client.renew_once(
                    self.job_id,
                    self.claim_id,
                    timeout_seconds=min(left, REQUEST_SECONDS) if left > 0 else REQUEST_SECONDS,
                )
            except RegistryError as error:
                if self._ended_by(error, sent_at):
                    return
                delay = backoff.next_delay(error)
            else:
                self._granted, self._lease = renewed, Lease.of(renewed, sent_at=sent_at)
                return
            left = self._lease.expires_at - time.monotonic()
            await asyncio.sleep(min(delay, max(left, 0.0)))
            if self._lease.has_expired(time.monotonic()):
                self.lose(_loss(self.job_id, CLAIM_EXPIRED, "the registry could not be reached in time"))
                await asyncio.sleep(delay)

    def _ended_by(self, error: RegistryError, sent_at: float) -> bool:
        """Whether a renewal was refused for good; note it."""
        if error.code not in END_CODES:
            return False
        self.lose(
            error if isinstance(error, ClaimSuperseded) else _loss(self.job_id, error.code, error.message)
        )
        self._lease = self._lease.refused(self.view, sent_at=sent_at)
        return True

    def _renewing_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            _LOG.error("the renewal of job %s crashed", self.job_id, exc_info=fault)
            self.lose(_loss(self.job_id, CLAIM_EXPIRED, f"it is renewed no more: {fault!r}; this is a bug"))

    @staticmethod
    def _loop_time(at: float) -> float:
        return asyncio.get_running_loop().time() + at - time.monotonic()


class RegistryClient:
    """One registry. Use it as `async with RegistryClient(url, token=token) as client`.

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
        self._transport = Transport(
            url,
            token=token,
            ssl_context=ssl_context,
            insecure_plaintext=insecure_plaintext,
            retry_seconds=retry_seconds,
        )
        self._held: dict[str, Claim] = {}
        self._ended: OrderedDict[str, ClaimLost] = OrderedDict()
        """Claims whose end was seen among the events, by id: it may be seen before the claim's own answer."""
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the claims that are still held, and close the connections."""
        await _finish(self._close())

    async def _close(self) -> None:
        async with asyncio.TaskGroup() as releasing:
            for claim in list(self._held.values()):
                releasing.create_task(claim.release(), name=f"release {claim.job_id}")
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        await self._transport.close()

    # Claims

    def claim(self, job: JobRequest, *, wait: float | None = None, raise_on_loss: bool = False) -> Claim:
        """Claim nodes and GPUs for a job while an `async with` block lasts; wait up to `wait` seconds.

        Without `wait` the job's `wait_seconds` count; `ValueError` where both are stated. The same job
        of the same owner gets the claim that it holds. `raise_on_loss` ends the block with `ClaimLost`
        where the claim ends before it. Raises `NoAvailableNode`, `JobIdInUse`.
        """
        return Claim(self, job, wait_seconds=wait, raise_on_loss=raise_on_loss)

    async def create_claim(self, job: JobRequest, *, wait: float | None = None) -> ClaimView:
        """Claim nodes and GPUs for a job without a block: `renew` it in time, and `release` it.

        Where the call is cancelled or raises `Unreachable`, the outcome is not known: the same job again
        returns its claim, and a claim that nobody renews expires. Otherwise as `claim`.
        """
        claim, _ = await self._claim(job, wait_seconds=wait)
        return claim

    async def renew(self, job_id: str, claim_id: str, *, ttl_seconds: float | None = None) -> ClaimView:
        """Renew a claim that no block renews; raises `NotFound`, `ClaimSuperseded`."""
        return await self._transport.send(routes.renew(job_id, claim_id, ttl_seconds=ttl_seconds))

    async def renew_all(self, claims: Iterable[tuple[str, str]]) -> tuple[RenewalResult, ...]:
        """Renew up to 1,000 claims, each a job id and a claim id; each has a result of its own."""
        names = [ClaimName(job_id=job_id, claim_id=claim_id) for job_id, claim_id in claims]
        return (await self._transport.send(routes.renew_all(names))).results

    async def release(self, job_id: str, claim_id: str, *, reason: str = "") -> None:
        """Release a claim because its job has ended; raises `NotFound`, `ClaimSuperseded`."""
        await self._transport.send(routes.release(job_id, claim_id, reason=reason))

    async def claim_of(self, job_id: str) -> ClaimDetail:
        """Return a job's claim with its history, also for an hour after its end; raises `NotFound`."""
        return await self._transport.send(routes.show_claim(job_id))

    async def claims(
        self, *, node_id: str | None = None, ended: bool = False
    ) -> AsyncGenerator[ClaimView, None]:
        """Yield the claims by job, of one node or of all; with `ended` also those of the last hour."""
        after: str | None = None
        while True:
            page = await self._transport.send(routes.list_claims(node_id=node_id, ended=ended, after=after))
            for one in page.claims:
                yield one
            if (after := page.next) is None:
                return

    async def queue(self) -> tuple[WaitingJob, ...]:
        """Return the jobs that wait, in the order in which they get capacity."""
        return (await self._transport.send(routes.show_queue())).jobs

    # Dispatch

    async def select(self, job: JobRequest) -> Selection:
        """Return what a claim would get now; reserves nothing. Raises `NoAvailableNode`."""
        return await self._transport.send(routes.select(job))

    async def explain(self, job: JobRequest, *, limit: int | None = None, offset: int = 0) -> ExplanationView:
        """Return for every node whether it could take a job now, and why not.

        With `limit` so many excluded nodes behind `offset`, the nearest first, each with what would end it.
        """
        return await self._transport.send(routes.explain(job, limit=limit, offset=offset))

    async def exclusions(self) -> tuple[ExclusionsView, ...]:
        """Return why jobs found no node in the last hour, by minute."""
        return (await self._transport.send(routes.show_exclusions())).windows

    async def members(self) -> tuple[MemberView, ...]:
        """Return the processes that are the registry, the leader first."""
        return (await self._transport.send(routes.show_members())).members

    async def thresholds(self) -> tuple[ThresholdView, ...]:
        """Return the thresholds by which the registry judges nodes and jobs."""
        return (await self._transport.send(routes.show_thresholds())).thresholds

    # Nodes

    async def nodes(
        self,
        *,
        statuses: Iterable[str] = (),
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        gpu_name: str | None = None,
        connected: bool | None = None,
    ) -> AsyncGenerator[NodeSummary, None]:
        """Yield the nodes that match every condition, by id."""
        wanted, after = tuple(statuses), None
        while True:
            route = routes.list_nodes(
                statuses=wanted,
                model=model,
                labels=labels or {},
                gpu_name=gpu_name,
                connected=connected,
                after=after,
            )
            page = await self._transport.send(route)
            for one in page.nodes:
                yield one
            if (after := page.next) is None:
                return

    async def node(self, node_id: str) -> NodeDetail:
        """Return all that the registry knows of a node; raises `NotFound`."""
        return await self._transport.send(routes.show_node(node_id))

    async def find_nodes(
        self, text: str | None = None, *, show: str | None = None, sort: str = "severity"
    ) -> AsyncGenerator[NodeSummary, None]:
        """Yield the nodes that mention a text, or need attention, or have free GPUs, in an order."""
        after = None
        while True:
            page = await self._transport.send(routes.find_nodes(text, show=show, sort=sort, after=after))
            for one in page.nodes:
                yield one
            if (after := page.next) is None:
                return

    async def fleet(self) -> FleetFigures:
        """Return the fleet in figures: nodes by status, GPUs by status and model, slots, models."""
        return await self._transport.send(routes.show_fleet())

    async def gpu_history(self, node_id: str) -> tuple[GpuHistoryView, ...]:
        """Return what each GPU of a node did in the last 15 minutes; raises `NotFound`."""
        return (await self._transport.send(routes.show_gpu_history(node_id))).gpus

    async def node_events(self, node_id: str, *, limit: int = 50) -> tuple[RegistryEvent, ...]:
        """Return a node's latest events, oldest first; raises `NotFound`."""
        return (await self._transport.send(routes.node_events(node_id, limit=limit))).events

    async def explain_node(self, node_id: str, *, model: str | None = None) -> NodeExplanation:
        """Return which jobs a node would refuse now, and why; raises `NotFound`."""
        return await self._transport.send(routes.explain_node(node_id, model=model))

    async def drain(
        self, node_id: str, *, deadline_seconds: float | None = None, reason: str = ""
    ) -> NodeDetail:
        """Let a node finish its jobs, then take it offline until it is resumed."""
        return await self._transport.send(
            routes.drain(node_id, deadline_seconds=deadline_seconds, reason=reason)
        )

    async def resume(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Return a drained node to service."""
        return await self._transport.send(routes.act(node_id, "resume", reason=reason))

    async def cordon(self, node_id: str, *, gpu_uuid: str | None = None, reason: str = "") -> NodeDetail:
        """Give a node, or one GPU of it, no new jobs."""
        return await self._transport.send(routes.cordon(node_id, gpu_uuid=gpu_uuid, reason=reason))

    async def uncordon(self, node_id: str, *, gpu_uuid: str | None = None, reason: str = "") -> NodeDetail:
        """End a cordon."""
        return await self._transport.send(routes.uncordon(node_id, gpu_uuid=gpu_uuid, reason=reason))

    async def refresh(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Have a node probe again now."""
        return await self._transport.send(routes.act(node_id, "refresh", reason=reason))

    async def reregister(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Have a node register again on its open connection."""
        return await self._transport.send(routes.act(node_id, "reregister", reason=reason))

    async def check(self, node_id: str, *, reason: str = "") -> NodeDetail:
        """Have a node run its admission checks now."""
        return await self._transport.send(routes.act(node_id, "check", reason=reason))

    async def remove(self, node_id: str, *, reason: str = "") -> None:
        """Remove a node's record."""
        await self._transport.send(routes.remove_node(node_id, reason=reason))

    # Workers

    async def endpoints(
        self, *, model: str | None = None, labels: Mapping[str, str] | None = None
    ) -> tuple[EndpointView, ...]:
        """Return the workers of ready nodes that match, each with its free slots."""
        return (await self._transport.send(routes.list_endpoints(model=model, labels=labels or {}))).endpoints

    async def watch_endpoints(
        self, *, model: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncGenerator[tuple[EndpointView, ...], None]:
        """Yield the workers now, and again after each change, without end, over restarts too."""
        path = routes.list_endpoints(model=model, labels=labels or {}).path
        async with aclosing(self._transport.watch_endpoints(path)) as lists:
            async for one in lists:
                yield one.endpoints

    # Events

    async def events(
        self, *, after: int | None = None, node_id: str | None = None
    ) -> AsyncGenerator[RegistryEvent, None]:
        """Yield every event from now on, or after the one of that id, without end, over restarts too.

        An event `events_missed` says that some are not known any more.
        """
        async with aclosing(self._transport.follow(after=after, node_id=node_id)) as stream:
            async for one in stream:
                if not isinstance(one, Opened):
                    yield one

    # What `Claim` needs

    async def acquire(self, job: JobRequest, *, wait_seconds: float | None) -> tuple[ClaimView, Lease]:
        """Claim nodes, and return from when on to count the claim's life; leave no claim behind otherwise."""
        try:
            return await self._claim(job, wait_seconds=wait_seconds)
        except (asyncio.CancelledError, Busy, Unreachable) as error:
            if not isinstance(error, RegistryError) or may_repeat(error):
                await _finish(self._undo(job))
            raise

    async def renew_once(self, job_id: str, claim_id: str, *, timeout_seconds: float) -> ClaimView:
        """Send one renewal."""
        return await self._transport.send_once(
            routes.renew(job_id, claim_id), timeout_seconds=timeout_seconds
        )

    async def release_within(self, job_id: str, claim_id: str, *, seconds: float) -> None:
        """Release a claim in bounded time; where that fails, it expires by itself."""
        try:
            async with asyncio.timeout(seconds):
                await self._transport.send(routes.release(job_id, claim_id), within_seconds=seconds)
        except (NotFound, ClaimSuperseded):
            return  # it has ended before
        except (RegistryError, TimeoutError) as error:
            _LOG.warning("the claim of job %s was not released and will expire: %s", job_id, error)

    def hold(self, claim: Claim) -> None:
        """Report to a claim what the events say of it, from now on."""
        self._held[claim.claim_id] = claim
        if claim.claim_id in self._ended:
            claim.lose(self._ended[claim.claim_id])
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow(), name="follow claims")

    def let_go(self, claim: Claim) -> None:
        """Report nothing more to a claim."""
        if self._held.get(claim.claim_id) is claim:
            del self._held[claim.claim_id]

    async def _claim(self, job: JobRequest, *, wait_seconds: float | None) -> tuple[ClaimView, Lease]:
        if wait_seconds is not None and "wait_seconds" in job.model_fields_set:
            raise ValueError("the wait is stated twice: leave out `wait`, or the job's `wait_seconds`")
        until = time.monotonic() + (job.wait_seconds if wait_seconds is None else wait_seconds)
        backoff = Backoff()
        while True:
            sent_at = time.monotonic()
            wait = min(max(until - sent_at, 0.0), LONGEST_WAIT_SECONDS)
            try:
                claim = await self._transport.send_once(
                    routes.claim(job.model_copy(update={"wait_seconds": wait})),
                    timeout_seconds=wait + REQUEST_SECONDS,
                )
                return await self._counted(claim, sent_at)
            except NoAvailableNode:
                now = time.monotonic()
                if now >= until or not is_worth_asking_again(wait_seconds=wait, waited_seconds=now - sent_at):
                    raise  # the wait is over, or no node could ever take the job
                backoff = Backoff()
            except NotFound:
                pass  # it ended before its first renewal
            except (Busy, Unreachable) as error:
                delay = backoff.next_delay(error)
                if not may_repeat(error) or time.monotonic() + delay > until + self._transport.retry_seconds:
                    raise
                await self._transport.wait(error, delay)

    async def _counted(self, claim: ClaimView, sent_at: float) -> tuple[ClaimView, Lease]:
        """Renew a claim that was long in coming, because its life is counted from the sending (§5.3)."""
        while (lease := Lease.of(claim, sent_at=sent_at)).renew_at <= time.monotonic():
            sent_at = time.monotonic()
            claim = await self._transport.send_once(routes.renew(claim.job_id, claim.claim_id))
        return claim, lease

    async def _undo(self, job: JobRequest) -> None:
        """Release what a request whose answer was not awaited may have reserved.

        The same request again returns that claim, if there is one; no other request of this job is open.
        """
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                again = job.model_copy(update={"wait_seconds": 0.0})
                claim = await self._transport.send(routes.claim(again), within_seconds=RELEASE_SECONDS)
                if claim.claim_id not in self._held:
                    await self._transport.send(routes.release(job.job_id, claim.claim_id))
        except (RegistryError, TimeoutError) as error:
            if not isinstance(error, NoAvailableNode):
                _LOG.warning("if job %s has a claim, it will expire by itself: %s", job.job_id, error)

    async def _follow(self) -> None:
        """Follow the events for the claims that are held; without, renewals notice a loss later."""
        while True:
            try:
                async with aclosing(self._transport.follow()) as stream:
                    async for one in stream:
                        self._read(one)
            except (Busy, Unreachable):
                await asyncio.sleep(LONGEST_DELAY_SECONDS)
            except RegistryError as error:
                _LOG.warning("the registry's events cannot be followed: %s", error)
                return

    def _read(self, one: Opened | RegistryEvent) -> None:
        if isinstance(one, Opened) or one.event == _MISSED:
            if not (isinstance(one, Opened) and one.resumed):
                for claim in self._held.values():
                    claim.check()
            return
        claim_id, end = one.fields.get("claim_id"), END_EVENTS.get(one.event)
        if end is None or not isinstance(claim_id, str):
            return
        loss = self._ended[claim_id] = _loss(str(one.fields.get("job_id")), *end)
        if len(self._ended) > _ENDED_REMEMBERED:
            self._ended.popitem(last=False)
        held = self._held.get(claim_id)
        if held is not None:
            held.lose(loss)


def _loss(job_id: str, code: str, why: str) -> ClaimLost:
    return ClaimLost(f"job {job_id!r} has lost its claim: {why}", code=code)


async def _finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Finish work of bounded length also where the caller is cancelled meanwhile, then pass that on."""
    task = asyncio.get_running_loop().create_task(work, name="finish")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        with suppress(RegistryError, asyncio.CancelledError):
            task.result()
        raise cancelled
    return task.result()
