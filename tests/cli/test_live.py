import io

import pytest
from rich.console import Console

from gpu_agent.cli.lines import line
from gpu_agent.cli.live import LiveLines


@pytest.mark.parametrize("whole_screen", [False, True])
def test_lines_are_redrawn_and_the_terminal_is_given_back(*, whole_screen: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=40, height=10)
    with LiveLines(console, whole_screen=whole_screen) as live:
        live.draw([line("first")])
        live.draw([line("second " * 20)])
    said = written.getvalue()
    assert "first" in said
    assert "second" in said
    assert ("\x1b[?1049h" in said) == whole_screen
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")
