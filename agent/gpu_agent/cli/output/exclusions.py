"""Eligible nodes and exclusion reasons as tables: for one job over nodes, and for one node over jobs."""

from collections.abc import Iterable, Iterator, Mapping

from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, wrap
from gpu_agent.cli.output.units import clock
from gpu_agent.wire.api import (
    ExcludedNode,
    ExclusionsList,
    ExclusionsView,
    ExplanationView,
    ModelState,
    NodeExclusionView,
    NodeExplanation,
)
from gpu_agent.wire.explain_document import ExplainDocument

_FAILURE_COLUMNS = (
    Column(head="FROM"),
    Column(head="FAILED", right=True),
    Column(head="REASON"),
    Column(head="TIMES", right=True),
)


def eligibility_table(answer: ExplanationView, columns: int | None, *, most: int | None = None) -> list[Line]:
    """Draw the eligible nodes, best first, then the others with what the job needs and the node has.

    At most so many of each, None for all.
    """
    names = {one.node_id: one.hostname for one in answer.eligible_nodes}
    rows = [
        Row((_node(node_id, names.get(node_id)), line(Piece("eligible", "green"))))
        for node_id in answer.eligible[:most]
    ]
    rows += [
        Row((_node(one.node_id, one.hostname), line(Piece(one.reason, "yellow"))), line(need_and_have(one)))
        for one in answer.excluded[:most]
    ]
    return render_table(Table((Column(head="NODE"), Column(head="RESULT")), rows, note="WHY"), columns)


def nodes_left_out(answer: ExplanationView, most: int | None) -> str:
    """Say how many nodes `eligibility_table` leaves out; empty where it draws all."""
    if most is None:
        return ""
    counts = (("eligible", len(answer.eligible)), ("excluded", sum(answer.counts.values())))
    left = [f"{count - most:,} more {result}" for result, count in counts if count > most]
    return " and ".join(left)


def _node(node_id: str, hostname: str | None) -> Line:
    return line(node_id, Piece(f" {hostname}", "dim") if hostname else "")


def reasons_table(reasons: Iterable[NodeExclusionView], columns: int | None) -> list[Line]:
    """Draw which jobs a node refuses now: what it has, and what would end that."""
    table = Table(
        (Column(head="NOW REFUSED", wraps=True), Column(head="REASON")),
        [_row(one) for one in reasons],
        note="WHY",
    )
    return render_table(table, columns)


def _limits_table(limits: Iterable[NodeExclusionView], columns: int | None) -> list[Line]:
    """Draw which other jobs are refused, since the node has not what they need."""
    rows = [Row((line(one.refuses), line(Piece(one.reason, "yellow")))) for one in limits]
    return render_table(
        Table((Column(head="ALSO REFUSED", wraps=True), Column(head="REASON")), rows), columns
    )


def acceptance_line(name: str, answer: NodeExplanation | ExplainDocument) -> Line:
    """Say which jobs a node takes now."""
    if answer.refuses_every_job:
        return line(Piece(name, "bold"), Piece(" takes no job now", "red"))
    if answer.exclusions:
        return line(Piece(name, "bold"), Piece(" takes jobs, but not all of them", "yellow"))
    return line(Piece(name, "bold"), Piece(" takes every job that fits it", "green"))


def explanation_page(answer: NodeExplanation, columns: int | None) -> Iterator[Line]:
    """Draw which jobs a node would be refused, by its registry."""
    yield acceptance_line(answer.node_id, answer)
    if answer.exclusions:
        yield BLANK
        yield from reasons_table(answer.exclusions, columns)
    if answer.limits:
        yield BLANK
        yield from _limits_table(answer.limits, columns)
    if answer.model is not None:
        yield BLANK
        yield from wrap(_model_line(answer.model), columns)


def local_explanation_page(answer: ExplainDocument, columns: int | None) -> Iterator[Line]:
    """Draw which jobs this machine would be refused, as far as its agent knows."""
    yield acceptance_line(answer.node_id or "This machine", answer)
    if answer.exclusions:
        yield BLANK
        yield from reasons_table(answer.exclusions, columns)
    yield BLANK
    unknown = "; ".join(answer.only_the_registry_knows)
    yield from wrap(line(Piece(f"Only the registry knows {unknown}. Ask it: {answer.ask}", "dim")), columns)


def exclusions_table(answer: ExclusionsList, columns: int | None, *, now: float) -> list[Line]:
    """Draw how many jobs found no node, minute by minute, and why; nothing where every job found one."""
    rows = [row for window in answer.windows for row in _failure_rows(window, now)]
    return render_table(Table(_FAILURE_COLUMNS, rows, note="FOR EXAMPLE"), columns) if rows else []


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Say how many nodes each reason excluded."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def need_and_have(one: ExcludedNode | NodeExclusionView) -> str:
    """Say what the job needs and the node has."""
    return f"needs {one.need}; has {one.have}"


def _row(one: NodeExclusionView) -> Row:
    note: list[object] = [Piece("now: ", "bold"), one.have]
    if one.clears_when:
        note += ["; ", Piece("clears when: ", "bold"), one.clears_when]
    return Row((line(one.refuses), line(Piece(one.reason, "yellow"))), line(*note))


def _model_line(model: ModelState) -> Line:
    versions = ", ".join(
        f"{one.version} {one.status}{'' if one.enabled else ' disabled'}" for one in model.versions
    )
    style = "green" if model.ready else "yellow"
    return line(
        f"Model {model.model_id}: ",
        Piece(model.state, style),
        f" (versions: {versions})" if versions else "",
    )


def _failure_rows(window: ExclusionsView, now: float) -> Iterator[Row]:
    began, failed = line(clock(window.window_start, now)), line(window.failed)
    for reason, count in window.counts.items():
        examples = window.examples.get(reason, ())
        yield Row(
            (began, failed, line(Piece(reason, "yellow")), line(count)),
            line(*(f"{one.node_id} {need_and_have(one)}" for one in examples[:1])),
        )
    if window.failed and not window.counts:
        yield Row((began, failed, line("no node known"), line(0)))
