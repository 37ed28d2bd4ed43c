from pathlib import Path

import pytest

from gpu_agent.probe.models.local_notes import revision_noted
from gpu_agent.probe.models.tree import Tree, open_root
from tests.probe.models.caches import revision


def noted(folder: Path, text: str | None) -> str | None:
    if text is not None:
        notes = folder / ".cache" / "huggingface" / "download"
        notes.mkdir(parents=True)
        (notes / "config.json.lock").touch()
        (notes / "config.json.metadata").write_text(text)
    return revision_noted(Tree(open_root(folder)), str(folder))


def test_the_first_line_of_a_note_is_the_revision(tmp_path: Path) -> None:
    assert noted(tmp_path, f"{revision(7)}\netag\n1700000000.0\n") == revision(7)


@pytest.mark.parametrize("text", [None, "", "main\n", revision(7) + "f", "A" * 40])
def test_anything_else_is_no_revision(tmp_path: Path, text: str | None) -> None:
    assert noted(tmp_path, text) is None


@pytest.mark.parametrize("name", [".cache", ".cache/huggingface", ".cache/huggingface/download"])
def test_notes_behind_a_link_are_not_read(tmp_path: Path, name: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    assert noted(outside, revision(7)) == revision(7)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(outside / name)
    assert noted(folder, None) is None
