from collections.abc import Iterator

import pytest

from gpu_agent.cli.commands import ROOT
from gpu_agent.cli.grammar import Command, Group


def commands(group: Group, path: str = "") -> Iterator[tuple[str, Command]]:
    for name, entry in group.commands.items():
        if isinstance(entry, Group):
            yield from commands(entry, f"{path} {name}")
        else:
            yield f"{path} {name}".strip(), entry


COMMANDS = dict(commands(ROOT))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_can_be_loaded_and_has_a_line_about_it(words: str) -> None:
    configure, run = COMMANDS[words].load()
    assert callable(configure)
    assert callable(run)
    assert COMMANDS[words].summary


def test_no_code_serves_two_commands() -> None:
    loaded = [command.load() for command in COMMANDS.values()]
    assert len(loaded) == len(set(loaded))
