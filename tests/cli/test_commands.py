import importlib.util

import pytest

from gpu_agent.cli.commands import ROOT, Command, Group


def commands(group: Group) -> list[Command]:
    return [
        one
        for entry in group.commands.values()
        for one in (commands(entry) if isinstance(entry, Group) else [entry])
    ]


@pytest.mark.parametrize("command", commands(ROOT), ids=lambda command: command.module)
def test_every_command_has_its_module_and_a_line_about_it(command: Command) -> None:
    assert importlib.util.find_spec(f"gpu_agent.cli.{command.module}")
    assert command.summary


def test_no_module_serves_two_commands() -> None:
    modules = [command.module for command in commands(ROOT)]
    assert len(modules) == len(set(modules))
