"""Every `gpu-agent` command that the documentation shows can be typed: its words are known to the program."""

import ast
import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

from gpu_agent.cli.declaration import Command, Group
from gpu_agent.cli.groups import ROOT

ROOT_FOLDER = Path(__file__).parent.parent
_SYSTEMDS = ("systemctl ", "journalctl ")
"""To these `gpu-agent` is the name of a unit."""
DOCUMENTS = [ROOT_FOLDER / "README.md", *sorted((ROOT_FOLDER / "docs").rglob("*.md"))]


def shown(document: Path) -> list[str]:
    """List the commands in a document's blocks of shell, each without what stands around it."""
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    whole = [block.replace("\\\n", " ") for block in blocks]
    lines = [_bare(line) for block in whole for line in block.splitlines() if not line.startswith(_SYSTEMDS)]
    found = [match[0] for line in lines for match in re.finditer(r"gpu-agent [^|)><&]+", line)]
    return [command.strip() for command in found]


def _bare(line: str) -> str:
    """A line without its comment and `runuser`, and with a word where the shell puts a command's output."""
    line = re.sub(r"^runuser -u \S+ -- ", "", re.sub(r"(^|\s+)#.*", "", line))
    return re.sub(r"\$\([^)]*\)", "x", line)


def command_for(words: list[str]) -> tuple[Command, list[str]]:
    place: Group | Command = ROOT
    while isinstance(place, Group):
        place = place.command(words.pop(0))
    return place, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_shown_can_be_typed(document: Path) -> None:
    for command in shown(document):
        found, words = command_for(shlex.split(command)[1:])
        with contextlib.suppress(click.exceptions.Exit):  # --help
            found.make_context(found.path, words)


def test_the_tour_is_found() -> None:
    assert len(shown(ROOT_FOLDER / "docs" / "tutorial" / "tour.md")) > 10


def named_in_sentences() -> list[tuple[str, str]]:
    """Find the commands that sentences of the program and of pages name between backquotes."""
    pages = [(document.stem, document.read_text(encoding="utf-8")) for document in DOCUMENTS]
    in_pages = [
        (name, command if command.startswith("gpu-agent") else f"gpu-agent {command}")
        for name, text in pages
        for command in re.findall(
            r"`((?:gpu-agent|registry) [a-z][^`{…\n]*)`", re.sub(r"(?s)```.*?```", "", text)
        )
    ]
    templates = sorted((ROOT_FOLDER / "agent" / "gpu_agent").rglob("templates/*.html"))
    in_pages += [
        (template.name, command)
        for template in templates
        for command in re.findall(
            r"(?m)(?:<pre>|<code>|^)(gpu-agent [a-z][^<{\n]*)", template.read_text(encoding="utf-8")
        )
    ]
    sources = sorted((ROOT_FOLDER / "agent" / "gpu_agent").rglob("*.py"))
    return in_pages + [
        (source.stem, command)
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        for command in re.findall(r"`(gpu-agent [a-z][^`{]*)`", _text_of(node))
    ]


def _text_of(node: ast.AST) -> str:
    """The text of a string, with a word for each value of an f-string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "X"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_command_that_a_sentence_names_exists_with_its_options() -> None:
    named = named_in_sentences()
    assert len(named) > 100
    assert ("_empty.html", "gpu-agent demo") in named
    for module, command in named:
        words = shlex.split(command)[1:]
        place: Group | Command = ROOT
        while isinstance(place, Group) and words and not words[0].startswith("-"):
            place = place.command(words.pop(0))
        surplus = isinstance(place, Command) and not place.takes and words and not words[0].startswith("-")
        assert not surplus, f"{module}: {command}"
        known = {name for param in place.params for name in param.opts}
        options = {word for word in words if word.startswith("--")}
        assert options <= known, f"{module}: {command}"
