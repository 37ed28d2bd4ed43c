"""What each admission check expects, and what its result is: passed, failed, or why it could not be run.

A check without a result is no failed one: where there is no libcuda, nothing is known of the memory's
bandwidth. The agent reports results alone; `gpu-agent check` and `status` also show what was not run. A check
that can never have a result on this machine passes, and its detail begins with "does not apply": a registry
that requires it would wait for ever.

To add a check: its name in `wire.codes`, among those of the node or of each GPU, which lets `[admission]`
name it; here what it expects (`Expected`) and its judgement; for an expectation of the owner's a field of
`node.settings.ChecksSettings`; what must run in a process of its own in `child`; a row of the table in
`docs/howto/return-to-service.md`, then `make reference schema`.
"""

import json
import shlex
from collections.abc import Iterator, Mapping

from gpu_agent.probe.checks.process import Ended, Unfinished
from gpu_agent.probe.nvml.errors import NOT_SUPPORTED, TOO_OLD
from gpu_agent.records import dataclass
from gpu_agent.wire.codes import NODE_SCOPE
from gpu_agent.wire.inventory import Gpu, GpuReport

DOES_NOT_APPLY = "does not apply"
ASLEEP = f"{DOES_NOT_APPLY} while the GPU sleeps"
"""Passes until the GPU is awake, and takes the place of no earlier result."""

_NO_RECOVERY = "none"
_PROHIBITED = "prohibited"
_SIGKILL = 9
"""No driver sends it: the kernel does for want of memory, or a person. It says nothing about the GPU."""
_DETAIL_CHARACTERS = 200
_MAX_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the owner expects of the machine; what is None is not checked, or only reported."""

    gpu_count: int | None = None
    gpu_model: str | None = None
    """Part of the name of each GPU."""
    pcie_width: int | None = None
    """None: the most that the card can."""
    pcie_speed_gts: float | None = None
    """None: the most that the card can."""
    min_bandwidth_gb_s: float | None = None
    """Between host and GPU, each way; None: only reported."""
    gpu_seconds: float = 30.0
    """How long the check of one GPU may take."""
    hook: tuple[str, ...] = ()
    """A command and its arguments."""
    hook_seconds: float = 300.0
    hook_while_in_use: bool = False
    """Whether the hook may run while GPUs are in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one check found."""

    name: str
    scope: str = NODE_SCOPE
    ok: bool | None
    """None: the check could not be run."""
    detail: str


def judge_count(report: GpuReport, expected: Expected) -> Iterator[Result]:
    """Judge how many GPUs are offered, MIG devices not counted."""
    if expected.gpu_count is None:
        return
    found = len(report.checked)
    is_right = found == expected.gpu_count
    number = "1 GPU" if found == 1 else f"{found} GPUs"
    detail = f"{number}, {'as expected' if is_right else f'expected {expected.gpu_count}'}"
    yield Result(name="gpu_count", ok=is_right, detail=detail)


def judge_reading(gpu: Gpu, expected: Expected) -> Iterator[Result]:
    """Judge what the driver says of one GPU."""
    if expected.gpu_model is not None:
        fits = expected.gpu_model.lower() in gpu.name.lower()
        detail = gpu.name if fits else f"{gpu.name}, expected {expected.gpu_model}"
        yield Result(name="gpu_model", scope=gpu.uuid, ok=fits, detail=_short(detail))
    if gpu.recovery_action is not None:
        ok = gpu.recovery_action == _NO_RECOVERY
        detail = "the driver asks for none" if ok else f"the driver asks for it: {gpu.recovery_action}"
        yield Result(name="recovery_action", scope=gpu.uuid, ok=ok, detail=_short(detail))
    else:
        yield _judge_unread(gpu, "recovery_action", "recovery_action")
    if gpu.compute_mode is not None:
        ok = gpu.compute_mode != _PROHIBITED
        detail = gpu.compute_mode if ok else f"{gpu.compute_mode}: no program can use it"
        yield Result(name="compute_mode", scope=gpu.uuid, ok=ok, detail=_short(detail))
    else:
        yield _judge_unread(gpu, "compute_mode", "compute_mode")
    if gpu.fabric_faults is not None:
        detail = ", ".join(gpu.fabric_faults) or "all is well"
        yield Result(name="fabric", scope=gpu.uuid, ok=not gpu.fabric_faults, detail=_short(detail))
    else:
        yield _judge_unread(gpu, "fabric", "fabric_faults")


def judge_child(gpu: Gpu, ended: Ended | Unfinished, expected: Expected) -> Iterator[Result]:
    """Judge what the child that checked one GPU answered, or that it did not."""
    answer = _answer(ended)
    if answer is None:
        failed = ended.returncode != -_SIGKILL if isinstance(ended, Ended) else ended.hung
        why = _end_in_words(ended)
        yield from same_of_both(gpu, ok=False if failed else None, detail=why)
        return
    yield _judge_link(gpu, _mapping(answer.get("link")), expected)
    yield _judge_copies(gpu, _mapping(answer.get("copies")), expected)


def same_of_both(gpu: Gpu, *, ok: bool | None, detail: str) -> Iterator[Result]:
    """Yield one result for both checks of the child: what ended it, or kept it from running, is of both."""
    for name in ("pcie_link", "memory_bandwidth"):
        yield Result(name=name, scope=gpu.uuid, ok=ok, detail=_short(detail))


def will_never_be_read(gpu: Gpu, field: str) -> bool:
    """Say whether a reading that a GPU lacks does not come as long as the driver stays the same."""
    return gpu.vendor != "nvidia" or gpu.unknowns.get(field, NOT_SUPPORTED) in (NOT_SUPPORTED, TOO_OLD)


def judge_hook(ended: Ended | Unfinished, expected: Expected) -> Result:
    """Judge the owner's command: it passes by exit status 0; its last line says more."""
    command = shlex.join(expected.hook)
    if isinstance(ended, Unfinished):
        failed = ended.hung or ended.cannot_start
        return Result(name="hook", ok=False if failed else None, detail=_short(f"{command}: {ended.why}"))
    ok = ended.returncode == 0
    last = next((line for line in reversed(ended.output.splitlines()) if line.strip()), "")
    detail = _printable(last.strip()) or ("" if ok else f"{command} printed nothing")
    how = "" if ok else f"{_status(ended.returncode)}: "
    return Result(name="hook", ok=ok, detail=_short(how + detail))


def _judge_unread(gpu: Gpu, name: str, field: str) -> Result:
    """Judge a check whose reading is lacking."""
    if gpu.asleep:
        return Result(name=name, scope=gpu.uuid, ok=True, detail=ASLEEP)
    if not gpu.health.usable:
        return Result(name=name, scope=gpu.uuid, ok=None, detail=f"the GPU is {gpu.health}")
    why = gpu.unknowns.get(field, "it has no such reading")
    if will_never_be_read(gpu, field):
        return Result(name=name, scope=gpu.uuid, ok=True, detail=_short(f"{DOES_NOT_APPLY}: {why}"))
    return Result(name=name, scope=gpu.uuid, ok=None, detail=_short(why))


def _judge_link(gpu: Gpu, link: Mapping[str, object], expected: Expected) -> Result:
    width, speed = _number(link.get("width")), _number(link.get("speed"))
    wanted_width = expected.pcie_width or _number(link.get("max_width"))
    wanted_speed = expected.pcie_speed_gts or _number(link.get("max_speed"))
    if width is None or wanted_width is None:
        why = "the kernel does not say how wide the link is"
        is_expected = expected.pcie_width is not None or expected.pcie_speed_gts is not None
        if is_expected or _number(link.get("max_width")) is not None:
            return Result(name="pcie_link", scope=gpu.uuid, ok=None, detail=why)
        return Result(name="pcie_link", scope=gpu.uuid, ok=True, detail=f"{DOES_NOT_APPLY}: {why}")
    is_wide = width >= wanted_width
    found = f"x{width:g} of x{wanted_width:g}"
    if speed is None or wanted_speed is None:
        return Result(name="pcie_link", scope=gpu.uuid, ok=is_wide, detail=found)
    found += f", {speed:g} of {wanted_speed:g} GT/s"
    if speed < wanted_speed and not link.get("under_load"):
        found += ", which counts for nothing: a link without traffic slows down"
        return Result(name="pcie_link", scope=gpu.uuid, ok=is_wide, detail=found)
    return Result(name="pcie_link", scope=gpu.uuid, ok=is_wide and speed >= wanted_speed, detail=found)


def _judge_copies(gpu: Gpu, copies: Mapping[str, object], expected: Expected) -> Result:
    to, back = _number(copies.get("to_gb_s")), _number(copies.get("from_gb_s"))
    if to is None or back is None:
        problem = copies.get("problem")
        detail = str(problem or copies.get("not_run") or "no figures")
        ok = None if problem is None else False
        if problem is None and detail.startswith(DOES_NOT_APPLY):
            ok = True
        return Result(name="memory_bandwidth", scope=gpu.uuid, ok=ok, detail=_short(detail))
    least = expected.min_bandwidth_gb_s
    wanted = "" if least is None else f", at least {least:g} expected"
    detail = f"{to:g} GB/s to the GPU, {back:g} back{wanted}"
    ok = least is None or min(to, back) >= least
    return Result(name="memory_bandwidth", scope=gpu.uuid, ok=ok, detail=detail)


def _answer(ended: Ended | Unfinished) -> Mapping[str, object] | None:
    """Read the child's answer, its last line; None where there is none."""
    if isinstance(ended, Unfinished) or ended.returncode != 0:
        return None
    try:
        answer = json.loads(ended.output.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return answer if isinstance(answer, dict) else None


def _end_in_words(ended: Ended | Unfinished) -> str:
    if isinstance(ended, Unfinished):
        return ended.why
    lines = [line for line in ended.output.splitlines() if line.strip()]
    said = f": {_printable(lines[-1].strip())}" if lines else ""
    return f"the process that checks the GPU ended by {_status(ended.returncode)}{said}"


def _status(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _short(text: str) -> str:
    return text if len(text) <= _DETAIL_CHARACTERS else f"{text[: _DETAIL_CHARACTERS - 1]}…"
