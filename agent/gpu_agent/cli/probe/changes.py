"""What changed between two looks at one machine, a line for each change; figures that drift are none."""

from collections.abc import Iterator

from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.probe.gpu_sheet import HEALTH_STYLES, in_order, label, short
from gpu_agent.cli.probe.models import STATUS_STYLES
from gpu_agent.cli.probe.verdict import verdict
from gpu_agent.probe.snapshot import exit_code
from gpu_agent.wire.inventory import Gpu, Inventory, Model

_ARROW = "→"


def changes(before: Inventory, after: Inventory) -> Iterator[Line]:
    """Yield GPUs first, then models, then what follows from it."""
    yield from _gpu_changes(before, after)
    yield from _model_changes(before, after)
    if (exit_code(before), before.gpu.detail) != (exit_code(after), after.gpu.detail):
        yield line(Piece(verdict(after), "green" if exit_code(after) == 0 else "bold red"))


def _gpu_changes(before: Inventory, after: Inventory) -> Iterator[Line]:
    older = {gpu.uuid: gpu for gpu in before.gpu.gpus}
    for gpu, below in in_order(after.gpu.gpus):
        name = f"GPU {below or label(gpu)}"
        known = older.pop(gpu.uuid, None)
        if known is None:
            yield line(f"{name} is there: {short(gpu.name)}, ", _health(gpu), *_reasons(gpu))
        elif known.health is not gpu.health:
            yield line(f"{name}: {known.health.value} {_ARROW} ", _health(gpu), *_reasons(gpu))
        elif _codes(known) != _codes(gpu):
            yield line(f"{name} is still ", _health(gpu), *_reasons(gpu))
    for gone in older.values():
        yield line(Piece(f"GPU {label(gone)} is gone: {short(gone.name)} {gone.uuid}", "yellow"))


def _health(gpu: Gpu) -> Piece:
    return Piece(gpu.health.value, HEALTH_STYLES[gpu.health])


def _reasons(gpu: Gpu) -> Iterator[str]:
    for place, reason in enumerate(gpu.reasons):
        action = f"; next step: {reason.action}" if reason.action else ""
        yield f"{'; ' if place else ': '}{reason.detail} ({reason.code}){action}"


def _codes(gpu: Gpu) -> list[str]:
    return sorted(reason.code for reason in gpu.reasons)


def _model_changes(before: Inventory, after: Inventory) -> Iterator[Line]:
    older = {(model.model_id, model.version): model for model in before.models}
    for model in after.models:
        known = older.pop((model.model_id, model.version), None)
        if known is None:
            yield line(f"model {model.model_id} {model.version} is there: ", *_state(model))
        elif (known.status, known.enabled) != (model.status, model.enabled):
            was = known.status.value if known.enabled else f"{known.status.value} disabled"
            yield line(f"model {model.model_id} {model.version}: {was} {_ARROW} ", *_state(model))
    for gone in older.values():
        yield line(Piece(f"model {gone.model_id} {gone.version} is gone", "yellow"))


def _state(model: Model) -> Iterator[Piece]:
    yield Piece(model.status.value, STATUS_STYLES[model.status])
    if not model.enabled:
        yield Piece(" disabled", "yellow")
    if model.detail:
        yield Piece(f": {model.detail}")
