import json
from pathlib import Path

import pytest

from gpu_agent.probe.models.contents import (
    Contents,
    format_of,
    object_in,
    progress,
    read_object,
    stem_of,
    whole_name,
)
from gpu_agent.probe.models.tree import Found, Tree, open_root


def contents(*names: str, size: int = 1) -> Contents:
    return Contents(tuple(Found(name, f"/nowhere/{name}", size=size) for name in names))


def on_disk(folder: Path) -> tuple[Tree, Contents]:
    tree = Tree(open_root(folder))
    return tree, Contents(tuple(tree.files(str(folder))))


def test_the_weights_are_weighed_and_the_format_is_the_one_that_most_bytes_are_in(tmp_path: Path) -> None:
    tree = Tree(open_root(tmp_path))
    large, small = Found("model.safetensors", "", size=9), Found("rust_model.bin", "", size=5)
    beside = Found("tokenizer.json", "", size=70)
    assert Contents((small, beside, large)).weigh(tree) == (14, "safetensors")
    assert contents("config.json", "a/b.PLAN").weigh(tree) == (1, "tensorrt")


def test_where_no_format_is_known_all_files_are_weighed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    unasked = Found("a", str(tmp_path / "a"), None)
    assert Contents((unasked, Found("b", "", 4))).weigh(Tree(open_root(tmp_path))) == (7, None)


def test_an_empty_file_counts_among_the_weights_of_the_main_format_alone(tmp_path: Path) -> None:
    tree = Tree(open_root(tmp_path))
    whole, empty = Found("a.safetensors", "", size=9), Found("b.safetensors", "", size=0)
    assert Contents((whole, empty)).empty(tree) == "b.safetensors: it is empty"
    assert Contents((whole, Found("training_args.bin", "", size=0))).empty(tree) is None
    assert Contents((Found("config.json", "", size=0),)).empty(tree) is None


def test_the_first_broken_file_stands_for_all_and_counts_them() -> None:
    broken = [Found(name, "", problem="its link leads nowhere") for name in "ab"]
    assert Contents(broken).broken == "a: its link leads nowhere (and 1 more)"
    assert Contents(broken[:1]).broken == "a: its link leads nowhere"
    assert contents("a").broken is None


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
def test_weights_that_are_not_here_are_told_by_those_that_are(names: list[str], missing: str | None) -> None:
    assert contents(*names).missing == missing


def test_unfinished_files_are_told_by_their_endings() -> None:
    assert contents("a.gguf.part", "b.incomplete", "c").unfinished == 2
    assert whole_name("a.gguf.part") == "a.gguf"
    assert whole_name("a.gguf") == "a.gguf"
    assert progress(1) == "1 file is still being fetched"
    assert progress(2) == "2 files are still being fetched"


def test_names_tell_format_and_stem() -> None:
    assert (format_of("x.gguf"), format_of("x.txt"), format_of("x")) == ("gguf", None, None)
    assert stem_of("big-00001-of-00002.gguf") == "big"
    assert stem_of("small.q4.gguf") == "small.q4"


def test_the_kind_is_told_by_the_config_then_the_card_then_the_weights(tmp_path: Path) -> None:
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
    assert object_in('\ufeff{"kind": "asr"}'.encode()) == {"kind": "asr"}
    for encoding in ("utf-16", "utf-32-le", "latin-1"):
        assert object_in('{"kind": "é"}'.encode(encoding)) == {}
