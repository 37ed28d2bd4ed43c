import re
from html import unescape

import pytest

from tools.pictures import FOLDER, SCENES, SIZES, Scene

EACH = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)


def words_of(picture: str) -> str:
    return unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture)))


@EACH
def test_each_scene_is_drawn_in_both_sizes_with_the_command_as_it_is_now(scene: Scene) -> None:
    typed = re.sub(r"\{.*?\}", "node-", scene.typed)
    for size in SIZES:
        picture = FOLDER / f"{scene.name}-{size.columns}x{size.lines}.svg"
        said = words_of(picture.read_text(encoding="utf-8"))
        assert scene.seconds or typed in said, "make pictures"
        assert "Traceback" not in said
        assert "usage:" not in said


def test_no_picture_is_left_of_a_scene_that_is_gone() -> None:
    names = [f"{scene.name}-{size.columns}x{size.lines}" for scene in SCENES for size in SIZES]
    drawn = {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {path.name for path in FOLDER.iterdir()} == drawn
