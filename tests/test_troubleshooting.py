"""`docs/howto/troubleshooting.md` quotes messages that the program has, and names reasons that there are."""

import ast
import re
from collections.abc import Iterator

import pytest

from gpu_agent.wire.codes import ExclusionReason, NodeStatus, ReasonCode
from tests.documents import DOCS, page, quoted, rows

PACKAGE = DOCS.parent / "agent" / "gpu_agent"
SECTIONS = {
    heading: rows("troubleshooting.md", heading)
    for heading in re.findall(r"(?m)^## (.+)$", page("troubleshooting.md"))
    if "\n|---" in page("troubleshooting.md").split(f"## {heading}\n")[1].split("\n## ")[0]
}
CODES = {*ExclusionReason, *ReasonCode, *NodeStatus}
MESSAGES = [
    message
    for heading, table in SECTIONS.items()
    for row in table
    for message in quoted(row[0])
    if message not in CODES
]


def sentences() -> Iterator[str]:
    """Every text in the program, with `…` for what it fills in."""
    for source in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXT = "\n".join(sentences())


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_is_one_of_the_programs(message: str) -> None:
    parts = [part.strip() for part in message.split("…") if part.strip()]
    assert parts
    assert [part for part in parts if part not in TEXT] == []


def test_sections_are_read_and_quote_messages() -> None:
    assert len(SECTIONS) >= 6
    assert len(MESSAGES) >= 20
