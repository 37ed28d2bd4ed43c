"""What is wrong with a node, or else what is noteworthy, and what a person does next.

One sentence for a row, the next step as an imperative. Codes of GPUs are explained by the table of reasons
that the agent uses; those of statuses here, as docs/reference/statuses.md does at more length.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from gpu_agent.probe.health.reasons import REASONS
from gpu_agent.wire.api import GpuView, NodeSummary
from gpu_agent.wire.codes import GpuStatus, NodeStatus, ReasonCode

_STEPS: Mapping[str, str] = {
    ReasonCode.MODEL_MISSING: "Restore the model on the node: it returns by itself.",
    ReasonCode.GPU_UNAVAILABLE: "Run `gpu-agent probe` there: it names the cause and the next step.",
    ReasonCode.CHECK_FAILED: "After the repair have the node run its checks again: `registry node check`.",
    ReasonCode.WARMUP_TIMEOUT: "See which checks fail.",
    ReasonCode.HEALTH_CHECKS_FAILED: "See which checks fail.",
    ReasonCode.FLAPPING: "See which checks fail, and whether the network between is stable.",
    ReasonCode.HEARTBEAT_TIMEOUT: "Is the machine up, and does it reach the registry?",
    ReasonCode.UNREGISTERED: "The agent was stopped: start it again.",
    ReasonCode.DRAIN_COMPLETE: "Resume the node when it may work again.",
    ReasonCode.DRAIN_DEADLINE: "Resume the node when it may work again.",
}
_CHECK_NAME = re.compile(r"^[a-z_]+: ")
"""What a sentence begins with that repeats a failed check."""
_NAMED_GPUS = 6
_MOST_REASONS = 4
_LONGEST_REASON = 80
"""Characters; a node may write longer ones, and many."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a node."""

    mark: str
    """Its class: `l` lost, `q` unknown, `d` degraded, `o` offline, `z` idle, `n` no claim; empty for none."""
    sentence: str
    codes: tuple[str, ...] = ()
    """For programs and for search."""
    step: str = ""
    """What to do; empty where nothing is to be done."""
    gpus: tuple[int, ...] = ()
    """The places of the GPUs that it is about."""
    since: float | None = None
    """Unix time; None where it is unknown."""

    @property
    def is_fault(self) -> bool:
        """Whether it needs attention."""
        return self.mark in {"l", "q", "d", "o"}


def findings_of(node: NodeSummary) -> tuple[Finding, ...]:
    """Return what there is to know of a node, the most urgent first; empty where all is well."""
    return tuple(_findings(node))


def placeable(gpus: Iterable[GpuView]) -> tuple[GpuView, ...]:
    """Leave out the parents of MIG devices: they count in no total, and take no job."""
    return tuple(gpu for gpu in gpus if gpu.status is not None)


def step_after(code: str) -> str:
    """Say what to do about a node with this reason; empty where nothing is to be done."""
    return _STEPS.get(code, "")


def gpu_sentence(codes: Sequence[str]) -> str:
    """Say what the first known reason of a GPU means; empty where none is known."""
    return next((REASONS[code].detail for code in codes if code in REASONS), "")


def shown_reasons(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return so many of a GPU's reasons, each so long, as a person would read."""
    shown = tuple(
        one if len(one) <= _LONGEST_REASON else f"{one[:_LONGEST_REASON]}…" for one in reasons[:_MOST_REASONS]
    )
    more = len(reasons) - len(shown)
    return (*shown, f"{more} more") if more else shown


def _findings(node: NodeSummary) -> Iterator[Finding]:
    gpus = placeable(node.gpus)
    faults = [] if node.status == NodeStatus.OFFLINE else list(_gpu_faults(gpus))
    if node.status == NodeStatus.OFFLINE:
        drained = node.reason_code in {ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE}
        yield _of_status(node, "" if drained else "o")
    elif node.status == NodeStatus.DEGRADED and not (
        faults and node.reason_code == ReasonCode.GPU_UNAVAILABLE
    ):
        yield _of_status(node, "d")
    yield from faults
    if node.status in {NodeStatus.DRAINING, NodeStatus.REGISTERING}:
        yield _of_status(node, "")
    if node.cordoned is not None:
        yield Finding("", f"Cordoned: {node.cordoned or 'no reason given'}", ("cordoned",))
    for place, gpu in enumerate(gpus):
        if gpu.cordoned is not None:
            yield Finding("", f"GPU {gpu_number(gpu, place)} {gpu.cordoned}", ("cordoned",), gpus=(place,))
    yield from _of_use(gpus)


def _gpu_faults(gpus: Sequence[GpuView]) -> Iterator[Finding]:
    yield from _of_gpus(gpus, [gpu.status == GpuStatus.LOST for gpu in gpus], mark="l", word="lost")
    yield from _of_gpus(gpus, [gpu.status == GpuStatus.UNKNOWN for gpu in gpus], mark="q", word="unknown")
    yield from _of_gpus(gpus, [_is_degraded(gpu) for gpu in gpus], mark="d", word="degraded")


def _of_status(node: NodeSummary, mark: str) -> Finding:
    reason = _CHECK_NAME.sub("", node.reason) or node.reason_code
    step = step_after(node.reason_code)
    return Finding(mark, f"{reason[:1].upper()}{reason[1:]}", (node.reason_code,), step, since=node.since)


def _of_gpus(gpus: Sequence[GpuView], chosen: Sequence[bool], *, mark: str, word: str) -> Iterator[Finding]:
    """Say which GPUs have a fault: one sentence for those with the same reasons."""
    by_reasons: dict[tuple[str, ...], list[int]] = {}
    for place, (gpu, is_chosen) in enumerate(zip(gpus, chosen, strict=True)):
        if is_chosen:
            by_reasons.setdefault(gpu.reasons, []).append(place)
    for reasons, places in by_reasons.items():
        named = [str(gpu_number(gpus[place], place)) for place in places[:_NAMED_GPUS]]
        more = len(places) - len(named)
        which = ", ".join(named) + (f" and {more} more" if more else "")
        codes = shown_reasons(reasons)
        meaning = gpu_sentence(reasons) or (codes[0] if codes else "no reason given")
        sentence = f"{'GPUs' if len(places) > 1 else 'GPU'} {which} {word}: {meaning}"
        since = min((gpus[place].since or inf for place in places), default=inf)
        yield Finding(
            mark, sentence, codes, step_of(gpus[places[0]]), tuple(places), None if since == inf else since
        )


def step_of(gpu: GpuView) -> str:
    """Say what to do about a GPU, as an imperative; empty where nothing is to be done."""
    step = gpu.next_step or ""
    return f"{step[:1].upper()}{step[1:]}." if step else ""


def _of_use(gpus: Sequence[GpuView]) -> Iterator[Finding]:
    idle = [place for place, gpu in enumerate(gpus) if gpu.status == GpuStatus.IDLE]
    jobs = sorted({job for place in idle for job in jobs_of(gpus[place])})
    if idle:
        by = f" by {', '.join(jobs[:2])}{' and others' if len(jobs) > 2 else ''}" if jobs else ""  # noqa: PLR2004
        since = min((gpus[place].idle_since or inf for place in idle), default=inf)
        sentence = f"{_counted(len(idle))} claimed{by} and idle"
        yield Finding("z", sentence, ("claim_idle",), gpus=tuple(idle), since=None if since == inf else since)
    used = [place for place, gpu in enumerate(gpus) if gpu.status == GpuStatus.USED_WITHOUT_CLAIM]
    if used:
        code = "gpu_used_without_claim"
        yield Finding("n", f"{_counted(len(used))} used without a claim", (code,), gpus=tuple(used))


def jobs_of(gpu: GpuView) -> tuple[str, ...]:
    """Return the jobs whose claims have a GPU, or which may still run on it."""
    if gpu.claimed_by is not None:
        return (gpu.claimed_by,)
    return gpu.shared_by or (() if gpu.held_for is None else (gpu.held_for,))


def _is_degraded(gpu: GpuView) -> bool:
    return gpu.health == "degraded" or (gpu.health == "ok" and bool(gpu.reasons))


def gpu_number(gpu: GpuView, place: int) -> str:
    """Return by what people name a GPU: the driver's number, of a MIG device its place."""
    return str(place if gpu.index is None or gpu.parent_uuid is not None else gpu.index)


def _counted(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
