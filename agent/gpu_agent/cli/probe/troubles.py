"""What is wrong with this machine, each trouble with its next step.

Models that cannot serve have their reason beside them in their own table; here they are only counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gpu_agent.cli.lines import Line, Piece, line, wrapped
from gpu_agent.cli.nodes.event_words import clock
from gpu_agent.cli.printable import printable
from gpu_agent.cli.probe.gpu_sheet import HEALTH_STYLES, in_order, label
from gpu_agent.cli.probe.models import broken
from gpu_agent.cli.probe.verdict import MEMORY_STEP
from gpu_agent.wire.inventory import Gpu, HealthReason, Inventory, Outcome

_INDENT = Piece("    ")
_ENDLESS = 1_000_000
_MOST_PLACES = 5


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong."""

    what: Line
    next_step: str | None = None


def trouble_lines(inventory: Inventory, columns: int | None, *, now: float) -> list[Line]:
    """Draw all there is; nothing where all is well."""
    found = list(troubles(inventory, now=now))
    if not found:
        return []
    lines = [line(Piece("WHAT IS WRONG", "bold"))]
    for trouble in found:
        lines += _fitted(trouble.what, columns, indented=False)
        if trouble.next_step:
            lines += _fitted(line(Piece("next step: ", "bold"), trouble.next_step), columns, indented=True)
    return lines


def troubles(inventory: Inventory, *, now: float) -> Iterator[Trouble]:
    """Yield what is wrong: whoever failed to look for GPUs, GPU by GPU, then the models."""
    if inventory.gpu.outcome is Outcome.OK and inventory.gpu.gpus and inventory.gpu.detail:
        yield Trouble(line(inventory.gpu.detail))
    for gpu, below in in_order(inventory.gpu.gpus):
        for reason in gpu.reasons:
            yield Trouble(_told(gpu, below, reason, now=now), reason.action)
        if "memory_mb" in gpu.unknowns and not gpu.memory_mb:
            yield Trouble(
                line(f"GPU {below or label(gpu)}: its memory is unknown ({gpu.unknowns['memory_mb']})"),
                MEMORY_STEP,
            )
    yield from _of_models(inventory)


def _of_models(inventory: Inventory) -> Iterator[Trouble]:
    failed = broken(inventory.models)
    if failed:
        count = "1 model cannot" if failed == 1 else f"{failed} models cannot"
        yield Trouble(
            line(f"{count} serve: the table above says why"), "download again what is broken, or remove it"
        )
    for number, (place, why) in enumerate(inventory.models_unsearched.items()):
        if number == _MOST_PLACES:
            others = len(inventory.models_unsearched) - number
            yield Trouble(line(f"{others} more places could not be searched for models"), "--json lists them")
            break
        yield Trouble(line(f"{printable(place)} could not be searched for models: {why}"))
    if not inventory.models_complete:
        yield Trouble(
            line("the search for models ran out of its time: more may be there than are listed"),
            "nothing: the agent goes on where it stopped; a slow disk may be the cause",
        )


def _told(gpu: Gpu, below: str | None, reason: HealthReason, *, now: float) -> Line:
    since = "" if reason.since is None else f", since {clock(reason.since, now)}"
    return line(
        f"GPU {below or label(gpu)} is ",
        Piece(gpu.health.value, HEALTH_STYLES[gpu.health]),
        f": {reason.detail} ({reason.code}{since})",
    )


def _fitted(words: Line, columns: int | None, *, indented: bool) -> list[Line]:
    """Wrap with room for an indentation, which the first line of a trouble goes without."""
    room = _ENDLESS if columns is None else columns - len(_INDENT.text)
    first, *rest = wrapped(words, room)
    return [(_INDENT, *first) if indented else first, *((_INDENT, *part) for part in rest)]
