import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.models.files import FolderReader, FoundFile, open_root
from gpu_agent.probe.models.weights import (
    ModelFiles,
    fetch_progress,
    format_of,
    gguf_kind,
    indexed_files,
    parse_object,
    read_object,
    safetensors_problem,
    stem_of,
    whole_name,
)
from tests.probe.models.caches import tensors


def contents(*names: str, size: int = 1) -> ModelFiles:
    return ModelFiles(tuple(FoundFile(name, f"/nowhere/{name}", size=size) for name in names))


def on_disk(folder: Path) -> tuple[FolderReader, ModelFiles]:
    tree = FolderReader(open_root(folder))
    return tree, ModelFiles(tuple(tree.find_files(str(folder))))


def test_the_weights_are_weighed_and_the_format_is_the_one_that_most_bytes_are_in(tmp_path: Path) -> None:
    tree = FolderReader(open_root(tmp_path))
    large, small = FoundFile("model.safetensors", "", size=9), FoundFile("rust_model.bin", "", size=5)
    beside = FoundFile("tokenizer.json", "", size=70)
    assert ModelFiles((small, beside, large)).size_and_format(tree) == (14, "safetensors")
    assert contents("config.json", "a/b.PLAN").size_and_format(tree) == (1, "tensorrt")


def test_where_no_format_is_known_all_files_are_weighed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    unasked = FoundFile("a", str(tmp_path / "a"), None)
    assert ModelFiles((unasked, FoundFile("b", "", 4))).size_and_format(
        FolderReader(open_root(tmp_path))
    ) == (7, None)


def test_an_empty_file_counts_among_the_weights_of_the_main_format_alone(tmp_path: Path) -> None:
    tree = FolderReader(open_root(tmp_path))
    whole, empty = FoundFile("a.safetensors", "", size=9), FoundFile("b.safetensors", "", size=0)
    assert ModelFiles((whole, empty)).empty_file(tree) == "b.safetensors: it is empty"
    assert ModelFiles((whole, FoundFile("training_args.bin", "", size=0))).empty_file(tree) is None
    assert ModelFiles((FoundFile("config.json", "", size=0),)).empty_file(tree) is None


def test_the_first_broken_file_is_named_with_the_count_of_the_others() -> None:
    broken = [FoundFile(name, "", problem="its link leads nowhere") for name in "ab"]
    assert ModelFiles(broken).broken_file == "a: its link leads nowhere (and 1 more)"
    assert ModelFiles(broken[:1]).broken_file == "a: its link leads nowhere"
    assert contents("a").broken_file is None


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model-00002-of-00002.safetensors"], "1 of 2 parts of model.safetensors are here"),
        (["model.safetensors.index.json"], "the index of its weights is here, the weights are not"),
        (["pytorch_model.bin.index.json", "model.safetensors"], None),
        (["config.json"], None),
    ],
)
def test_missing_weights_are_known_by_those_that_exist(names: list[str], missing: str | None) -> None:
    assert contents(*names).missing_weights == missing


def test_unfinished_files_are_known_by_their_suffixes() -> None:
    assert contents("a.gguf.part", "b.incomplete", "c").unfinished == 2
    assert whole_name("a.gguf.part") == "a.gguf"
    assert whole_name("a.gguf") == "a.gguf"
    assert fetch_progress(1) == "1 file is still being fetched"
    assert fetch_progress(2) == "2 files are still being fetched"


def test_names_give_format_and_stem() -> None:
    assert (format_of("x.gguf"), format_of("x.txt"), format_of("x")) == ("gguf", None, None)
    assert stem_of("big-00001-of-00002.gguf") == "big"
    assert stem_of("small.q4.gguf") == "small.q4"


def test_the_kind_is_from_the_config_then_the_card_then_the_weights(tmp_path: Path) -> None:
    gguf = b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little")
    for value in (b"general.architecture", b"bert"):
        gguf += len(value).to_bytes(8, "little") + value
        gguf += (8).to_bytes(4, "little") if value.startswith(b"general") else b""
    (tmp_path / "model.gguf").write_bytes(gguf)
    tree, found = on_disk(tmp_path)
    assert found.kind(tree, "a/b") == "embedding"
    (tmp_path / "README.md").write_text("---\npipeline_tag: text-to-speech\n---\n")
    tree, found = on_disk(tmp_path)
    assert found.kind(tree, "a/b") == "tts"
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [None, "LlamaForCausalLM"]}))
    tree, found = on_disk(tmp_path)
    assert found.kind(tree, "a/b") == "llm"


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "[" * 100_000, "\xff", '{"a":' * 100_000])
def test_what_is_no_json_object_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    tree, found = on_disk(tmp_path)
    assert read_object(tree, found.file("config.json")) == {}


def test_a_file_that_went_away_is_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    tree, found = on_disk(tmp_path)
    (tmp_path / "config.json").unlink()
    assert read_object(tree, found.file("config.json")) == {}
    assert read_object(tree, None) == {}


def test_json_is_read_as_utf8_and_as_nothing_else() -> None:
    assert parse_object('\ufeff{"kind": "asr"}'.encode()) == {"kind": "asr"}
    for encoding in ("utf-16", "utf-32-le", "latin-1"):
        assert parse_object('{"kind": "é"}'.encode(encoding)) == {}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def head(*entries: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def named(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def counted(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "llm"), ("qwen3", "llm"), ("bert", "embedding"), ("whisper", "asr")]
)
def test_the_gguf_architecture_gives_the_kind(architecture: str, kind: str) -> None:
    entries = counted("general.quantization_version", 2), named("general.architecture", architecture)
    assert gguf_kind(head(*entries)) == kind


def test_a_gguf_head_without_an_architecture_has_no_kind() -> None:
    array = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 10**9)
    assert gguf_kind(b"") is None
    assert gguf_kind(b"not a model at all, though long enough to be one") is None
    assert gguf_kind(head()) is None
    assert gguf_kind(head(array, named("general.architecture", "llama"))) is None
    assert gguf_kind(head(named("general.architecture", "llama"))[:-1]) is None
    assert gguf_kind(head(struct.pack("<Q", 2**63) + b"x")) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(tail: bytes) -> None:
    gguf_kind(tail)
    gguf_kind(b"GGUF" + tail)


def file(folder: Path, content: bytes) -> tuple[FolderReader, FoundFile]:
    (folder / "m").write_bytes(content)
    return FolderReader(open_root(folder)), FoundFile("m", str(folder / "m"), None)


def headed(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.parametrize("content", [tensors(), tensors(0), headed(b"{}"), headed(b"{}", b"more")])
def test_a_whole_file_lacks_nothing(tmp_path: Path, content: bytes) -> None:
    assert safetensors_problem(*file(tmp_path, content)) is None


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
def test_a_short_or_foreign_safetensors_file_is_a_problem(tmp_path: Path, content: bytes, lacks: str) -> None:
    assert safetensors_problem(*file(tmp_path, content)) == lacks


@pytest.mark.parametrize(
    "header",
    [b"{", b'{"t": 7}', b'{"t": {"data_offsets": 7}}', b'{"t": {"data_offsets": ["a", null]}}', b"{" * 9000],
)
def test_a_header_without_offsets_is_trusted(tmp_path: Path, header: bytes) -> None:
    assert safetensors_problem(*file(tmp_path, headed(header))) is None


def test_a_header_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    tree, found = file(tmp_path, (2 << 20).to_bytes(8, "little"))
    os.truncate(found.path, 1 << 40)  # sparse: it takes no room
    assert safetensors_problem(tree, found) is None


def test_an_index_names_each_part_once_and_a_broken_one_none(tmp_path: Path) -> None:
    text = json.dumps({"weight_map": {"a": "1", "b": "2", "c": "1", "d": 7}}).encode()
    assert indexed_files(*file(tmp_path, text)) == {"1", "2"}
    for broken in (b"", b"{", b'{"weight_map": []}', b"[]"):
        assert indexed_files(*file(tmp_path, broken)) == set()


def test_a_file_that_went_away_is_a_problem_or_empty(tmp_path: Path) -> None:
    gone = FoundFile("m", str(tmp_path / "m"), 100)
    tree = FolderReader(open_root(tmp_path))
    assert safetensors_problem(tree, gone) == "no such file or directory"
    assert indexed_files(tree, gone) == set()
