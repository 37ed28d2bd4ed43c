"""The probe's page: GPUs, host, models, what is wrong, and whether this machine could register.

What matters most comes last, next to the prompt. Every problem names its next step.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gpu_agent.cli.output.blocks import Block, fit_page
from gpu_agent.cli.output.inventory import (
    MODEL_STATUS_STYLES,
    can_serve,
    count_broken,
    gib,
    gpu_block,
    gpu_label,
    health_piece,
    host_facts,
    in_tree_order,
    model_table,
    short_name,
)
from gpu_agent.cli.output.table import render_facts
from gpu_agent.cli.output.text import Glyphs, Line, Piece, join_blocks, line, printable, wrap
from gpu_agent.cli.output.units import clock
from gpu_agent.probe.health.reasons import how_to
from gpu_agent.probe.snapshot import COULD_REGISTER, able_to_serve, exit_code
from gpu_agent.wire.inventory import Gpu, GpuReport, HealthReason, Inventory, Model, Outcome, usable_in_words

MEMORY_STEP = "see what `nvidia-smi -q -d MEMORY` says, and update the driver"
"""What to do about a GPU whose memory is unknown."""
_INDENT = Piece("    ")
_MOST_FOLDERS = 5
_CLOSED = "permission denied"
"""The end of the detail of a model that the agent's user may not read."""
_ARROW = "→"


def probe_page(inventory: Inventory, columns: int | None, letters: Glyphs, *, now: float) -> list[Line]:
    """Draw everything; `columns` is None for a pipe, `now` is wall time."""
    return join_blocks(block.lines for block in _blocks(inventory, columns, letters, now=now))


def fitted_page(
    inventory: Inventory, size: tuple[int, int], letters: Glyphs, *, now: float
) -> tuple[list[Line], list[str]]:
    """Draw what a terminal of so many columns and lines has room for, and name what it has not."""
    columns, lines = size
    return fit_page(list(_blocks(inventory, columns, letters, now=now)), lines)


def _blocks(inventory: Inventory, columns: int | None, letters: Glyphs, *, now: float) -> Iterator[Block]:
    yield Block("machine", list(_headline(inventory, columns)), leaves=4)
    yield gpu_block(inventory.gpu.gpus, columns, letters)
    yield Block("host", render_facts(host_facts(inventory), columns), leaves=2)
    yield Block("models", _model_lines(inventory, columns), leaves=1)
    yield Block("what is wrong", trouble_lines(inventory, columns, now=now), leaves=3)
    yield Block("outcome", list(_outcome_lines(inventory, columns)))


def _headline(inventory: Inventory, columns: int | None) -> Iterator[Line]:
    gpu = inventory.gpu
    versions = [
        *([f"driver {gpu.driver_version}"] if gpu.driver_version else []),
        *([f"CUDA {gpu.cuda_version}"] if gpu.cuda_version else []),
    ]
    about = f"  {', '.join(versions)}" if versions else ""
    yield from wrap(line(Piece(inventory.host.hostname or "this machine", "bold"), about), columns)
    if inventory.simulated:
        yield from wrap(line(Piece("SIMULATED: these GPUs do not exist", "bold magenta")), columns)


def _model_lines(inventory: Inventory, columns: int | None) -> list[Line]:
    """Draw the models; a scan that failed is shown as unknown, not as "none"."""
    why = inventory.host.unknowns.get("models")
    if why is None:
        return model_table(inventory.models, columns)
    return wrap(line(Piece(f"Models unknown: {why}", "bold red")), columns)


def _outcome_lines(inventory: Inventory, columns: int | None) -> Iterator[Line]:
    good = exit_code(inventory) == COULD_REGISTER
    yield from wrap(line(Piece(outcome_sentence(inventory), "green" if good else "bold red")), columns)
    if good:
        yield from wrap(line(Piece(offer_sentence(inventory), "dim")), columns)


def outcome_sentence(inventory: Inventory) -> str:
    """Say in one sentence whether this machine could register, as the exit code does."""
    report = inventory.gpu
    if exit_code(inventory) == COULD_REGISTER:
        return f"Could register: {_usable_in_words(report)}."
    return f"Could not register: {_why_not(report)}"


def offer_sentence(inventory: Inventory) -> str:
    """Say what would be registered, in one line."""
    usable = able_to_serve(inventory.gpu)
    names = Counter(short_name(gpu.name) for gpu in usable)
    gpus = ", ".join(f"{count}x {name}" for name, count in names.items())
    memory = gib(sum(gpu.memory_mb or 0 for gpu in usable))
    ready = sum(map(can_serve, inventory.models))
    models = f"{ready} ready {'model' if ready == 1 else 'models'}"
    return f"It would offer {gpus} with {memory} GiB in all, and {models}."


def _usable_in_words(report: GpuReport) -> str:
    parents = {gpu.parent_uuid for gpu in report.offered}
    devices = [gpu for gpu in report.offered if gpu.uuid not in parents]
    words = usable_in_words(len(able_to_serve(report)), len(devices))
    unsized = _of_unknown_memory(report)
    return (
        f"{words}; the memory of {len(unsized)} is unknown{_reasons_in_words(unsized)}" if unsized else words
    )


def _why_not(report: GpuReport) -> str:
    if report.detail:
        return report.detail
    if report.outcome is Outcome.OK and not report.gpus:
        return "the driver answers, but it sees no GPU."
    unsized = _of_unknown_memory(report)
    if unsized:
        return f"the memory of the usable GPUs is unknown{_reasons_in_words(unsized)}; {MEMORY_STEP}."
    return "no GPU is usable; see its health above."


def _of_unknown_memory(report: GpuReport) -> tuple[Gpu, ...]:
    return tuple(gpu for gpu in report.usable if not gpu.memory_mb)


def _reasons_in_words(gpus: tuple[Gpu, ...]) -> str:
    reasons = dict.fromkeys(gpu.unknowns["memory_mb"] for gpu in gpus if "memory_mb" in gpu.unknowns)
    return f" ({', '.join(reasons)})" if reasons else ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong."""

    what: Line
    next_step: str | None = None


def trouble_lines(inventory: Inventory, columns: int | None, *, now: float) -> list[Line]:
    """Draw what is wrong; nothing where all is well."""
    found = list(troubles(inventory, now=now))
    if not found:
        return []
    lines = [line(Piece("WHAT IS WRONG", "bold"))]
    for trouble in found:
        lines += _fit_indented(trouble.what, columns, indented=False)
        if trouble.next_step:
            lines += _fit_indented(
                line(Piece("next step: ", "bold"), trouble.next_step), columns, indented=True
            )
    return lines


def troubles(inventory: Inventory, *, now: float) -> Iterator[Trouble]:
    """Yield what is wrong: collectors that failed, GPU by GPU, then the models."""
    if inventory.gpu.outcome is Outcome.OK and inventory.gpu.gpus and inventory.gpu.detail:
        yield Trouble(line(inventory.gpu.detail))
    for gpu, below in in_tree_order(inventory.gpu.gpus):
        for reason in gpu.reasons:
            yield Trouble(_gpu_trouble(gpu, below, reason, now=now), _step(gpu, reason))
        if "memory_mb" in gpu.unknowns and not gpu.memory_mb:
            yield Trouble(
                line(f"GPU {below or gpu_label(gpu)}: its memory is unknown ({gpu.unknowns['memory_mb']})"),
                MEMORY_STEP,
            )
    yield from _of_models(inventory)


def _of_models(inventory: Inventory) -> Iterator[Trouble]:
    failed = count_broken(inventory.models)
    if failed:
        count = "1 model cannot" if failed == 1 else f"{failed} models cannot"
        closed = any((model.detail or "").endswith(_CLOSED) for model in inventory.models)
        step = "download again what is broken, or remove it"
        if closed:
            step += "; let the agent's user read what it may not"
        yield Trouble(line(f"{count} serve: the table above says why"), step)
    for number, (folder, why) in enumerate(inventory.models_unsearched.items()):
        if number == _MOST_FOLDERS:
            others = len(inventory.models_unsearched) - number
            yield Trouble(line(f"{others} more folders could not be scanned for models"), "--json lists them")
            break
        yield Trouble(line(f"{printable(folder)} could not be scanned for models: {why}"))
    if not inventory.models_complete:
        yield Trouble(
            line("the scan for models ran out of its time: there may be more than are listed"),
            "nothing: the agent goes on where it stopped; a slow disk may be the cause",
        )


def _gpu_trouble(gpu: Gpu, below: str | None, reason: HealthReason, *, now: float) -> Line:
    since = "" if reason.since is None else f", since {clock(reason.since, now)}"
    return line(
        f"GPU {below or gpu_label(gpu)} is ",
        health_piece(gpu.health),
        f": {reason.detail} ({reason.code}{since})",
    )


def _fit_indented(words: Line, columns: int | None, *, indented: bool) -> list[Line]:
    """Wrap with room for an indentation; the first line of a trouble has none."""
    room = None if columns is None else columns - len(_INDENT.text)
    first, *rest = wrap(words, room)
    return [(_INDENT, *first) if indented else first, *((_INDENT, *part) for part in rest)]


def machine_changes(before: Inventory, after: Inventory) -> Iterator[Line]:
    """Yield a line for each change: GPUs, models, then the outcome; figures that always move are none."""
    yield from _gpu_changes(before, after)
    yield from _model_changes(before, after)
    if (exit_code(before), before.gpu.detail) != (exit_code(after), after.gpu.detail):
        yield line(Piece(outcome_sentence(after), "green" if exit_code(after) == 0 else "bold red"))


def _gpu_changes(before: Inventory, after: Inventory) -> Iterator[Line]:
    older = {gpu.uuid: gpu for gpu in before.gpu.gpus}
    for gpu, below in in_tree_order(after.gpu.gpus):
        name = f"GPU {below or gpu_label(gpu)}"
        known = older.pop(gpu.uuid, None)
        if known is None:
            yield line(f"{name} is there: {short_name(gpu.name)}, ", _health(gpu), *_health_reasons(gpu))
        elif known.health is not gpu.health:
            yield line(f"{name}: {known.health.value} {_ARROW} ", _health(gpu), *_health_reasons(gpu))
        elif _reason_codes(known) != _reason_codes(gpu):
            yield line(f"{name} is still ", _health(gpu), *_health_reasons(gpu))
    for gone in older.values():
        yield line(Piece(f"GPU {gpu_label(gone)} is gone: {short_name(gone.name)} {gone.uuid}", "yellow"))


def _health(gpu: Gpu) -> Piece:
    return health_piece(gpu.health)


def _health_reasons(gpu: Gpu) -> Iterator[str]:
    for index, reason in enumerate(gpu.reasons):
        step = _step(gpu, reason)
        yield f"{'; ' if index else ': '}{reason.detail} ({reason.code})"
        if step:
            yield f"; next step: {step}"


def _step(gpu: Gpu, reason: HealthReason) -> str | None:
    return how_to(reason.action, name=gpu.name, indexes=(gpu.index,)) if reason.action else None


def _reason_codes(gpu: Gpu) -> list[str]:
    return sorted(reason.code for reason in gpu.reasons)


def _model_changes(before: Inventory, after: Inventory) -> Iterator[Line]:
    older = {(model.model_id, model.version): model for model in before.models}
    for model in after.models:
        known = older.pop((model.model_id, model.version), None)
        if known is None:
            yield line(f"model {model.model_id} {model.version} is there: ", *_model_state(model))
        elif (known.status, known.enabled) != (model.status, model.enabled):
            was = known.status.value if known.enabled else f"{known.status.value} disabled"
            yield line(f"model {model.model_id} {model.version}: {was} {_ARROW} ", *_model_state(model))
    for gone in older.values():
        yield line(Piece(f"model {gone.model_id} {gone.version} is gone", "yellow"))


def _model_state(model: Model) -> Iterator[Piece]:
    yield Piece(model.status.value, MODEL_STATUS_STYLES[model.status])
    if not model.enabled:
        yield Piece(" disabled", "yellow")
    if model.detail:
        yield Piece(f": {model.detail}")
