"""What `gpu-agent demo` has its fleet do: jobs come and go, and an operator drains a node now and then.

Each step returns what was seen, by the registry's own answers: nothing is said that did not happen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, cycle

from gpu_agent.cli.client.http import Api, Refused, quote_id
from gpu_agent.cli.output.inventory import gpus_by_number
from gpu_agent.cli.output.text import Line, Piece, line
from gpu_agent.cli.registry.watch import node_changes
from gpu_agent.wire.api import ClaimView, NodeDetail, NodeList, NodeSummary
from gpu_agent.wire.codes import NodeStatus

JOB_EVERY_SECONDS = 2.0
DRAIN_AFTER_SECONDS, DRAIN_EVERY_SECONDS = 12.0, 60.0
OFFLINE_SECONDS = 6.0
"""How long a drained node stays offline."""
DRAIN_REASON = "new fans"


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of job: how long it runs, and what it needs where GPUs are simulated."""

    name: str
    seconds: float
    needs: Mapping[str, object]


KINDS = (
    JobKind("chat", 9.0, {"required_models": ["demo/chat-70b"], "gpu_count": 2}),
    JobKind("whisper", 5.0, {"required_models": ["demo/whisper"], "gpu_count": 1}),
    JobKind("translate", 7.0, {"required_models": ["demo/translate-zh-en"], "gpu_count": 1}),
    JobKind("train", 11.0, {"gpu_count": 4}),
)


@dataclass(frozen=True, slots=True)
class _Running:
    job_id: str
    node_id: str
    began: float
    ends: float


class Workload:
    """The jobs and drains of a demo; times are monotonic seconds."""

    def __init__(self, api: Api, *, simulated: bool) -> None:
        self._api = api
        self._simulated = simulated
        self._kinds = cycle(KINDS)
        self._numbers = count(1)
        self._running: list[_Running] = []
        self._next_job = self._next_drain = 0.0
        self._drained = ""
        self._resume_at: float | None = None
        self.nodes = self._read()
        """The list of nodes, as it was read last."""

    def step(self, now: float) -> Iterator[Line]:
        """Read the nodes, do what is due, and yield a line for each thing that was seen."""
        before, self.nodes = self.nodes, self._read()
        yield from node_changes(before, self.nodes, jobs=False)
        ready = [node for node in self.nodes.nodes if node.status == NodeStatus.READY]
        if not self._next_drain and len(ready) > 1:
            self._next_drain = now + DRAIN_AFTER_SECONDS
        yield from self._end_jobs(now)
        if ready and now >= self._next_job:
            self._next_job = now + JOB_EVERY_SECONDS
            yield self._begin_job(now)
        yield from self._drain_or_resume(ready, now)

    def _read(self) -> NodeList:
        return self._api.get("/v1/nodes", NodeList).model

    def _end_jobs(self, now: float) -> Iterator[Line]:
        for job in [one for one in self._running if now >= one.ends]:
            self._running.remove(job)
            try:
                self._api.delete(f"/v1/claims/{job.job_id}")
            except Refused as refused:
                yield line(f"job {job.job_id}  ", Piece(f"its claim was lost: {refused}", "red"))
            else:
                words = f"done on {self._name(job.node_id)} after {now - job.began:.0f} s"
                yield line(f"job {job.job_id}  ", Piece(words, "green"))

    def _begin_job(self, now: float) -> Line:
        kind = next(self._kinds)
        job_id = f"{kind.name}-{next(self._numbers)}"
        needs = kind.needs if self._simulated else {}
        try:
            claim = self._api.post("/v1/claims", {"job_id": job_id, **needs}, ClaimView).model
        except Refused as refused:
            counts = refused.document.get("counts")
            why = (
                ", ".join(f"{number} {reason}" for reason, number in counts.items())
                if isinstance(counts, dict)
                else ""
            )
            return line(f"job {job_id}  ", Piece(f"no node takes it now: {why or refused}", "yellow"))
        grant = claim.nodes[0]
        self._running.append(_Running(job_id, grant.node_id, now, now + kind.seconds))
        gpus = f", {gpus_by_number(grant.gpu_indices)}" if grant.gpu_indices else ""
        return line(f"job {job_id}  ", f"runs on {self._name(grant.node_id)}{gpus}")

    def _drain_or_resume(self, ready: list[NodeSummary], now: float) -> Iterator[Line]:
        if self._drained:
            node = next((one for one in self.nodes.nodes if one.node_id == self._drained), None)
            if node is None or node.status != NodeStatus.OFFLINE:
                return
            if self._resume_at is None:
                self._resume_at = now + OFFLINE_SECONDS
            elif now >= self._resume_at:
                self._act(node.node_id, "resume", {})
                yield line(f"operator  resumes {node.hostname or node.node_id}")
                self._drained, self._resume_at = "", None
                self._next_drain = now + DRAIN_EVERY_SECONDS
        elif self._next_drain and now >= self._next_drain and len(ready) > 1:
            node = min(ready, key=lambda one: (one.in_flight_jobs == 0, len(one.gpus)))
            self._act(node.node_id, "drain", {"reason": DRAIN_REASON})
            self._drained = node.node_id
            jobs = node.in_flight_jobs
            keeps = f"finishes {jobs} {'job' if jobs == 1 else 'jobs'}, and takes" if jobs else "takes"
            yield line(
                f"operator  drains {node.hostname or node.node_id} for {DRAIN_REASON}: it {keeps} no new one"
            )

    def _act(self, node_id: str, action: str, request: Mapping[str, object]) -> None:
        self._api.post(f"/v1/nodes/{quote_id(node_id)}/{action}", request, NodeDetail)

    def _name(self, node_id: str) -> str:
        return next((one.hostname or node_id for one in self.nodes.nodes if one.node_id == node_id), node_id)
