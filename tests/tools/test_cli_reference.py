import shlex
from pathlib import Path

import pytest

from gpu_agent.cli.command import MEANINGS
from gpu_agent.cli.declaration import Command
from tools.cli_reference import EVERYWHERE, MARK, commands, main, reference, written

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
COMMANDS = [command for _, command in commands()]
ASKING = [
    command
    for command in COMMANDS
    if command.path.split()[1] == "registry"
    and command.path.split(maxsplit=2)[-1] not in ("serve", "restore", "claim run")
]
"""`claim run` prints what its command prints."""


def by_name(command: Command) -> str:
    return command.path


def test_the_document_says_what_the_commands_say() -> None:
    """After a change of a command: `make reference`."""
    said = DOCUMENT.read_text(encoding="utf-8")
    assert said == written(said), "run `make reference`"


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_every_option_is_explained(command: Command) -> None:
    """`run`, `doctor` and `serve` have options of the same names as those that are explained once."""
    own = reference().split(f"### `{command.path}", 1)[1].split("\n### ", 1)[0]
    options = {name for param in command.params for name in param.opts if name.startswith("--")}
    once = {*EVERYWHERE} if "--server" in options else set[str]()
    assert {name for name in options - once - {"--help", "--socket"} if f"| `{name}" not in own} == set()


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    document = tmp_path / "cli.md"
    document.write_text(f"# Mine\n\n{MARK}\nold\n")
    assert main([str(document)]) == 0
    assert document.read_text() == f"# Mine\n\n{MARK}\n{reference()}"


@pytest.mark.parametrize("command", COMMANDS, ids=by_name)
def test_every_command_has_an_example_that_can_be_typed(command: Command) -> None:
    example = command.declared.example
    assert example.startswith(command.path)
    command.make_context(command.path, shlex.split(example.removeprefix(command.path)))


@pytest.mark.parametrize("command", ASKING, ids=by_name)
def test_every_command_that_asks_a_registry_says_where_and_answers_in_json(command: Command) -> None:
    options = {name for param in command.params for name in param.opts}
    assert {*EVERYWHERE, "--help", "--json"} <= options


def test_the_exit_codes_are_those_of_the_program() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("## How commands end\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows == [[str(int(code)), meaning] for code, meaning in MEANINGS.items()]
