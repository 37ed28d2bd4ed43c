"""Eligible nodes and exclusion reasons as tables: for one job over nodes, and for one node over jobs."""

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import Line, Piece, line

_COLUMNS = (Column(head="NODE"), Column(head="VERDICT"))


def eligibility_table(
    able: Iterable[str], excluded: Iterable[Mapping[str, Any]], columns: int | None
) -> list[Line]:
    """Draw the able nodes, best first, then the others with what the job needs and the node has."""
    rows = [Row((line(node_id), line(Piece("able", "green")))) for node_id in able]
    rows += [_excluded_row(one) for one in excluded]
    return render_table(Table(_COLUMNS, rows, note="WHY"), columns)


def counts_in_words(counts: Mapping[str, Any]) -> str:
    """How many nodes fell to which reason."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def need_and_have(one: Mapping[str, Any]) -> str:
    """What the job needs and the node has."""
    return f"needs {one['need']}; has {one['have']}"


def _excluded_row(one: Mapping[str, Any]) -> Row:
    return Row((line(one["node_id"]), line(Piece(one["reason"], "yellow"))), line(need_and_have(one)))


def exclusion_table(head: str, objections: Iterable[Mapping[str, Any]], columns: int | None) -> list[Line]:
    """Draw what is refused, and why, with what would end it."""
    sheet = Table(
        (Column(head=head, wraps=True), Column(head="REASON")),
        [_reason_row(one) for one in objections],
        note="WHY",
    )
    return render_table(sheet, columns)


def acceptance_line(who: str, answer: Mapping[str, Any]) -> Line:
    """Say which jobs a node takes now."""
    if answer["refuses_every_job"]:
        return line(Piece(who, "bold"), Piece(" takes no job now", "red"))
    if answer["objections"]:
        return line(Piece(who, "bold"), Piece(" takes jobs, but not all of them", "yellow"))
    return line(Piece(who, "bold"), Piece(" takes every job that fits it", "green"))


def _reason_row(one: Mapping[str, Any]) -> Row:
    clears = f"; until {one['clears_when']}" if one["clears_when"] else ""
    return Row((line(one["refuses"]), line(Piece(one["reason"], "yellow"))), line(need_and_have(one), clears))
