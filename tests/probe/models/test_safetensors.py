import json
import os
from pathlib import Path

import pytest

from gpu_agent.probe.models.safetensors import parts_in, shortfall
from gpu_agent.probe.models.tree import Found, Tree, open_root
from tests.probe.models.caches import tensors


def file(folder: Path, content: bytes) -> tuple[Tree, Found]:
    (folder / "m").write_bytes(content)
    return Tree(open_root(folder)), Found("m", str(folder / "m"), None)


def headed(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.parametrize("content", [tensors(), tensors(0), headed(b"{}"), headed(b"{}", b"more")])
def test_a_whole_file_lacks_nothing(tmp_path: Path, content: bytes) -> None:
    assert shortfall(*file(tmp_path, content)) is None


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        (b"", "it ends within its header"),
        (b"\x08", "it ends within its header"),
        (tensors()[:20], "it ends within its header"),
        (b"\xff" * 20, "it ends within its header"),
        (tensors(100)[:-30], f"{len(tensors(100)) - 30} of {len(tensors(100))} bytes are here"),
        (headed(b"[]"), "it has no header of a safetensors file"),
        (headed(b""), "it has no header of a safetensors file"),
    ],
)
def test_what_is_cut_short_or_something_else_is_told(tmp_path: Path, content: bytes, lacks: str) -> None:
    assert shortfall(*file(tmp_path, content)) == lacks


@pytest.mark.parametrize(
    "header",
    [b"{", b'{"t": 7}', b'{"t": {"data_offsets": 7}}', b'{"t": {"data_offsets": ["a", null]}}', b"{" * 9000],
)
def test_a_header_that_tells_nothing_is_taken_at_its_word(tmp_path: Path, header: bytes) -> None:
    assert shortfall(*file(tmp_path, headed(header))) is None


def test_a_header_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    tree, found = file(tmp_path, (2 << 20).to_bytes(8, "little"))
    os.truncate(found.path, 1 << 40)  # sparse: it takes no room
    assert shortfall(tree, found) is None


def test_an_index_names_each_part_once_and_a_broken_one_none(tmp_path: Path) -> None:
    text = json.dumps({"weight_map": {"a": "1", "b": "2", "c": "1", "d": 7}}).encode()
    assert parts_in(*file(tmp_path, text)) == {"1", "2"}
    for broken in (b"", b"{", b'{"weight_map": []}', b"[]"):
        assert parts_in(*file(tmp_path, broken)) == set()


def test_what_went_away_is_told_or_empty(tmp_path: Path) -> None:
    gone = Found("m", str(tmp_path / "m"), 100)
    tree = Tree(open_root(tmp_path))
    assert shortfall(tree, gone) == "no such file or directory"
    assert parts_in(tree, gone) == set()
