import shlex
from pathlib import Path

import pytest

from gpu_agent.cli.command import MEANINGS, Parser
from tools.cli_reference import EVERYWHERE, MARK, commands, main, reference, written

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
COMMANDS = [parser for _, parser in commands()]
ASKING = [
    parser
    for parser in COMMANDS
    if parser.prog.split()[1] == "registry"
    and parser.prog.split(maxsplit=2)[-1] not in ("serve", "restore", "claim run")
]
"""`claim run` prints what its command prints."""


def by_name(parser: Parser) -> str:
    return parser.prog


def test_the_document_says_what_the_commands_say() -> None:
    """After a change of a command: `make reference`."""
    said = DOCUMENT.read_text(encoding="utf-8")
    assert said == written(said), "run `make reference`"


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    document = tmp_path / "cli.md"
    document.write_text(f"# Mine\n\n{MARK}\nold\n")
    assert main([str(document)]) == 0
    assert document.read_text() == f"# Mine\n\n{MARK}\n{reference()}"


@pytest.mark.parametrize("parser", COMMANDS, ids=by_name)
def test_every_command_has_an_example_that_can_be_typed(parser: Parser) -> None:
    example = (parser.epilog or "").splitlines()[1].strip()
    assert example.startswith(parser.prog)
    parser.parse_args(shlex.split(example.removeprefix(parser.prog)))


@pytest.mark.parametrize("parser", COMMANDS, ids=by_name)
def test_every_command_says_how_it_ends_and_every_option_what_it_means(parser: Parser) -> None:
    assert "exit codes:\n    0  " in (parser.epilog or "")
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("parser", ASKING, ids=by_name)
def test_every_command_that_asks_a_registry_says_where_and_answers_in_json(parser: Parser) -> None:
    options = {option for action in parser._actions for option in action.option_strings}
    assert {*EVERYWHERE, "--json"} <= options


def test_the_exit_codes_are_those_of_the_program() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("## How commands end\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows == [[str(int(code)), meaning] for code, meaning in MEANINGS.items()]
