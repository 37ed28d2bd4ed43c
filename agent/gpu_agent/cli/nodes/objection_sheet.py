"""Which jobs a node would be refused, as tables for people: by its own word, or by its registry's."""

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_agent.cli.lines import Line, Piece, line
from gpu_agent.cli.nodes.verdict_sheet import need_and_have
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out


def objection_lines(head: str, objections: Iterable[Mapping[str, Any]], columns: int | None) -> list[Line]:
    """Draw what is refused, and why, with what would end it."""
    sheet = Sheet(
        (Column(head=head, folds=True), Column(head="REASON")), [_row(one) for one in objections], note="WHY"
    )
    return laid_out(sheet, columns)


def taken(who: str, answer: Mapping[str, Any]) -> Line:
    """Say which jobs a node takes now."""
    if answer["refuses_every_job"]:
        return line(Piece(who, "bold"), Piece(" takes no job now", "red"))
    if answer["objections"]:
        return line(Piece(who, "bold"), Piece(" takes jobs, but not all of them", "yellow"))
    return line(Piece(who, "bold"), Piece(" takes every job that fits it", "green"))


def _row(one: Mapping[str, Any]) -> Row:
    clears = f"; until {one['clears_when']}" if one["clears_when"] else ""
    return Row((line(one["refuses"]), line(Piece(one["reason"], "yellow"))), line(need_and_have(one), clears))
