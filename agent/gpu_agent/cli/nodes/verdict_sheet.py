"""What nodes answered to a job, as a table for people: able, or the first demand that fails and why."""

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out

_COLUMNS = (Column(head="NODE"), Column(head="VERDICT"))


def verdict_lines(
    able: Iterable[str], excluded: Iterable[Mapping[str, Any]], columns: int | None
) -> list[Line]:
    """Draw the able nodes, best first, then the others with what the job needs and the node has."""
    rows = [Row((line(node_id), line(Piece("able", "green")))) for node_id in able]
    rows += [_excluded(one) for one in excluded]
    return laid_out(Sheet(_COLUMNS, rows, note="WHY"), columns)


def counted(counts: Mapping[str, Any]) -> str:
    """How many nodes fell to which reason."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def need_and_have(one: Mapping[str, Any]) -> str:
    """What the job needs and the node has."""
    return f"needs {one['need']}; has {one['have']}"


def _excluded(one: Mapping[str, Any]) -> Row:
    return Row((line(one["node_id"]), line(Piece(one["reason"], "yellow"))), line(need_and_have(one)))
