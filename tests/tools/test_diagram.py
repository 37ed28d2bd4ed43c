import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tools.diagram import FOLDER, picture

DRAWINGS = sorted(FOLDER.glob("*.txt"))
TWO = """\
┌─ one ─┐   ┌─────┐
│       ├──▶│ two │
└───────┘   └─────┘
"""


@pytest.mark.parametrize("source", DRAWINGS, ids=lambda path: path.name)
def test_the_picture_is_that_of_the_text(source: Path) -> None:
    assert source.with_suffix(".svg").read_text("utf-8") == picture(source.read_text("utf-8")), (
        "make pictures"
    )


def test_boxes_words_and_an_arrow_between_them_are_drawn() -> None:
    drawn = ET.fromstring(picture(TWO))  # noqa: S314 - ours
    space = "{http://www.w3.org/2000/svg}"
    assert [words.text for words in drawn.iter(f"{space}text")] == ["one", "two"]
    assert len([box for box in drawn.iter(f"{space}rect") if box.get("class") == "box"]) == 2
    (line,) = drawn.iter(f"{space}line")
    (head,) = drawn.iter(f"{space}polygon")
    tip = float(re.split("[ ,]", head.get("points", ""))[0])
    second = [float(box.get("x", 0)) for box in drawn.iter(f"{space}rect") if box.get("class") == "box"][1]
    assert float(line.get("x1", 0)) < float(line.get("x2", 0)) < tip == second
