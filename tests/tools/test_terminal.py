import os
import sys
from xml.etree import ElementTree as ET

from tools.terminal import Size, drawing, shown

TEXT = "{http://www.w3.org/2000/svg}text"
COLOURED = "import os; print('\\x1b[31mred\\x1b[0m  plain', os.get_terminal_size().columns)"


def test_a_command_sees_a_terminal_of_that_size_and_its_colours_are_drawn() -> None:
    screen = shown([sys.executable, "-c", COLOURED], Size(60, 5), env=os.environ, typed="show")
    assert [line.rstrip() for line in screen.display[:2]] == ["$ show", "red  plain 60"]
    drawn = ET.fromstring(drawing(screen, "t"))  # noqa: S314 - ours
    texts = {words.text: words for words in drawn.iter(TEXT)}
    assert "fill: #ff7b72" in texts["red"].get("style", "")
    assert texts["plain 60"].get("style") is None
    assert float(texts["plain 60"].get("x", 0)) - float(texts["red"].get("x", 0)) == 5 * 8.4


def test_a_page_that_is_longer_than_the_terminal_is_drawn_whole() -> None:
    screen = shown(
        [sys.executable, "-c", "print(*range(40), sep='\\n')"], Size(20, 10), env=os.environ, typed="x"
    )
    assert [line.strip() for line in screen.display if line.strip()] == ["$ x", *map(str, range(40))]
