"""The doctor's findings as lines for people, and as one document for programs."""

from collections import Counter
from collections.abc import Sequence

from gpu_agent.cli.lines import Line, Piece, line, wrapped
from gpu_agent.cli.terminal import columns, show
from gpu_agent.runtime.findings import Finding, Verdict

SCHEMA = "gpu-agent.doctor/1"
_MARKS = {
    Verdict.OK: Piece("OK  ", "green"),
    Verdict.WARN: Piece("WARN", "yellow"),
    Verdict.FAIL: Piece("FAIL", "bold red"),
    Verdict.SKIPPED: Piece("SKIP", "dim"),
}
_NAME_COLUMNS = 15
_BEFORE = len("OK  ") + 2 + _NAME_COLUMNS + 2
_NARROW = 60
"""Below so many columns what is said stands under the name."""


def document(findings: Sequence[Finding]) -> dict[str, object]:
    """All findings, and whether nothing fails."""
    return {
        "schema": SCHEMA,
        "ok": all(finding.verdict is not Verdict.FAIL for finding in findings),
        "checks": [
            {"check": one.check, "verdict": one.verdict.value, "detail": one.detail, "mend": one.mend}
            for one in findings
        ],
    }


def show_finding(finding: Finding) -> None:
    """Print one, as the terminal or the pipe has room for it."""
    show(finding_lines(finding, columns()))


def show_sum(findings: Sequence[Finding]) -> None:
    """Say what they come to."""
    show([(), sum_line(findings)] if columns() is not None else [sum_line(findings)])


def finding_lines(finding: Finding, columns: int | None) -> list[Line]:
    """Draw one; without a terminal it is one line."""
    head = line(_MARKS[finding.verdict], f"  {finding.check:<{_NAME_COLUMNS}}  ")
    if columns is None:
        mend = "" if finding.mend is None else f". Mend: {finding.mend}"
        return [line(*head, f"{finding.detail}{mend}")]
    indent = _BEFORE if columns >= _NARROW else len("OK    ")
    room = columns - indent
    told = wrapped(line(finding.detail), room)
    if finding.mend is not None:
        told += wrapped(line(Piece("mend: ", "bold"), finding.mend), room)
    below = Piece(" " * indent)
    if columns < _NARROW:
        return [line(_MARKS[finding.verdict], f"  {finding.check}"), *((below, *part) for part in told)]
    first, *rest = told
    return [(*head, *first), *((below, *part) for part in rest)]


def sum_line(findings: Sequence[Finding]) -> Line:
    """Count the verdicts."""
    counted = Counter(finding.verdict for finding in findings)
    if counted[Verdict.FAIL]:
        failing = ", ".join(one.check for one in findings if one.verdict is Verdict.FAIL)
        return line(Piece(f"{counted[Verdict.FAIL]} of {len(findings)} fail: {failing}", "bold red"))
    known = f", {counted[Verdict.WARN]} to know of" if counted[Verdict.WARN] else ""
    return line(Piece(f"Nothing fails{known}", "green"))
