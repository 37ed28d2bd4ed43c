import json
import os
from itertools import accumulate
from pathlib import Path

import pytest

from gpu_agent.probe.models.file_cursor import FileCursor
from gpu_agent.probe.models.safetensors import safetensors_problem
from tests.probe.models.caches import tensors

NO_HEADER = "it has no header of a safetensors file"


def judged(folder: Path, content: bytes, *, longer_by: int = 0) -> str | None:
    """What is wrong with a file of that content, and then as many bytes of nothing."""
    path = folder / "m.safetensors"
    path.write_bytes(content)
    os.truncate(path, len(content) + longer_by)
    with path.open("rb") as file:
        try:
            return safetensors_problem(FileCursor(file.fileno(), len(content) + longer_by))
        except OSError as error:
            return str(error)


def headed(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.parametrize(
    "content", [tensors(), tensors(0), headed(b"{}"), headed(b"{}  \n"), headed(b"{}", b"more")]
)
def test_a_whole_file_lacks_nothing(tmp_path: Path, content: bytes) -> None:
    assert judged(tmp_path, content) is None


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        (b"\x08", "it ends within its header"),
        (tensors()[:20], "it ends within its header"),
        (b"\xff" * 20, NO_HEADER),
        (tensors(100)[:-30], f"{len(tensors(100)) - 30} of {len(tensors(100))} bytes are here"),
        (headed(b"[]"), NO_HEADER),
        (headed(b""), NO_HEADER),
        (headed(b"{" * 9000), NO_HEADER),
    ],
)
def test_a_short_or_foreign_file_is_a_problem(tmp_path: Path, content: bytes, lacks: str) -> None:
    assert judged(tmp_path, content) == lacks


def test_offsets_beyond_all_disks_are_a_problem(tmp_path: Path) -> None:
    content = headed(b'{"t": {"data_offsets": [0, 99999999999999999999]}}')
    whole = len(content) + 99999999999999999999
    assert judged(tmp_path, content) == f"{len(content)} of {whole} bytes are here"


@pytest.mark.parametrize("end", ["1" + "0" * 40, "9e99", "12345678.5"])
def test_an_end_that_is_no_usual_number_is_not_overlooked(tmp_path: Path, end: str) -> None:
    content = headed(b'{"t": {"data_offsets": [0, %s]}}' % end.encode())
    assert str(judged(tmp_path, content)).endswith("bytes are here")


def test_a_note_named_as_the_offsets_are_is_none(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"data_offsets": "0, 999"}, "t": {"data_offsets": [0, 2]}})
    assert judged(tmp_path, headed(header.encode(), b"ab")) is None


def test_of_ends_in_any_order_the_largest_counts(tmp_path: Path) -> None:
    ends = [7, 100, 99, 1024, 1023, 9, 0]
    header = json.dumps({f"t{end}": {"data_offsets": [0, end], "shape": [9999]} for end in ends})
    assert judged(tmp_path, headed(header.encode()), longer_by=1024) is None
    assert str(judged(tmp_path, headed(header.encode()), longer_by=1023)).endswith("bytes are here")


@pytest.mark.parametrize("sizes", [[5, 7, 100], [3, 0, 4, 0], [0, 0, 9], [1] * 30], ids=str)
def test_a_file_cut_anywhere_is_a_problem_also_where_a_tensor_ends(tmp_path: Path, sizes: list[int]) -> None:
    ends = list(accumulate(sizes))
    held = {
        f"t{n}": {"dtype": "U8", "shape": [ends[0], ends[n]], "data_offsets": [end - size, end]}
        for n, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }
    content = headed(json.dumps(held, separators=(",", ":")).encode())
    assert judged(tmp_path, content, longer_by=ends[-1]) is None
    for present in range(ends[-1]):
        assert str(judged(tmp_path, content, longer_by=present)).endswith("bytes are here")


def test_text_that_looks_like_offsets_is_none(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"a": '"data_offsets": [0, 999]'}, "t": {"data_offsets": [0, 2]}})
    assert judged(tmp_path, headed(header.encode(), b"ab")) is None


def test_a_header_of_megabytes_is_read_in_pieces(tmp_path: Path) -> None:
    header = json.dumps({f"tensor.{n}": {"dtype": "U8", "data_offsets": [n, n + 1]} for n in range(60_000)})
    content = headed(header.encode())
    assert len(content) > 2 << 20
    assert judged(tmp_path, content, longer_by=60_000) is None
    assert str(judged(tmp_path, content, longer_by=59_999)).endswith("bytes are here")


def test_a_header_longer_than_the_format_allows_is_not_read(tmp_path: Path) -> None:
    assert judged(tmp_path, (200 << 20).to_bytes(8, "little") + b"{", longer_by=1 << 40) == NO_HEADER
    assert judged(tmp_path, (90 << 20).to_bytes(8, "little") + b"{", longer_by=1 << 40) is not None
