import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpu_agent.probe.models.files import FolderReader, FoundFile, open_root
from gpu_agent.probe.models.weights import (
    ModelFiles,
    fetch_progress,
    format_of,
    indexed_files,
    parse_object,
    read_object,
    split_models,
    stem_of,
    whole_name,
)


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


@pytest.mark.parametrize(
    "text", [b"", b" ", b'{"a": 1} {}', b'{"a": 1}x', b'["a"]', b'{"a": 1', b'\xa0{"a": 1}']
)
def test_what_is_not_one_json_object_is_empty(text: bytes) -> None:
    assert parse_object(b'\r\n\t {"a": 1}\n') == {"a": 1}
    assert parse_object(text) == {}


def file(folder: Path, content: bytes) -> tuple[FolderReader, FoundFile]:
    (folder / "m").write_bytes(content)
    return FolderReader(open_root(folder)), FoundFile("m", str(folder / "m"), None)


def test_an_index_names_each_part_once_and_a_broken_one_none(tmp_path: Path) -> None:
    text = json.dumps({"weight_map": {"a": "1", "b": "2", "c": "1", "d": 7}}).encode()
    assert indexed_files(*file(tmp_path, text)) == {"1", "2"}
    for broken in (b"", b"{", b'{"weight_map": []}', b"[]"):
        assert indexed_files(*file(tmp_path, broken)) == set()


def test_a_file_that_went_away_is_a_problem_or_empty(tmp_path: Path) -> None:
    gone = FoundFile("m", str(tmp_path / "m"), 100)
    tree = FolderReader(open_root(tmp_path))
    found = ModelFiles([gone._replace(name="m.safetensors")])
    assert found.damaged_file(tree) == "m.safetensors: no such file or directory"
    assert indexed_files(tree, gone) == set()


def names(models: Mapping[str, ModelFiles]) -> dict[str, set[str]]:
    return {name: {file.name for file in model.files} for name, model in models.items()}


def split(*files: str) -> dict[str, set[str]]:
    return names(split_models([FoundFile(name, f"/nowhere/{name}", size=1) for name in files]))


def test_several_gguf_files_are_several_models_unless_they_are_shards_of_one_another() -> None:
    assert split("a.gguf", "config.json") == {"": {"a.gguf", "config.json"}}
    shards = {f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)}
    assert split(*sorted(shards)) == {"": shards}
    assert split("q4/a.gguf", "q8/a.gguf", "README.md", *sorted(shards)) == {
        "q4/a": {"q4/a.gguf", "README.md"},
        "q8/a": {"q8/a.gguf", "README.md"},
        "big": shards | {"README.md"},
    }


def test_one_gguf_file_beside_other_weights_is_a_model_of_its_own() -> None:
    assert split("model.safetensors", "config.json", "m-q4.gguf") == {
        "": {"model.safetensors", "config.json"},
        "m-q4": {"m-q4.gguf", "config.json"},
    }


def test_what_sees_for_a_model_is_a_part_of_it_and_no_model() -> None:
    assert split("a.gguf", "mmproj-a-f16.gguf") == {"": {"a.gguf", "mmproj-a-f16.gguf"}}
    assert split("a.gguf", "b.gguf", "mmproj.gguf") == {
        "a": {"a.gguf", "mmproj.gguf"},
        "b": {"b.gguf", "mmproj.gguf"},
    }


def test_what_a_model_was_quantized_with_is_no_part_of_it() -> None:
    assert split("a.gguf", "a-imatrix.gguf", "README.md") == {"": {"a.gguf", "README.md"}}
    assert split("a.gguf", "b.gguf", "imatrix.gguf.part") == {"a": {"a.gguf"}, "b": {"b.gguf"}}
    assert split("imatrix.gguf", "model.safetensors") == {"": {"model.safetensors"}}
    assert split("imatrix.gguf", "README.md") == {"": {"imatrix.gguf", "README.md"}}


def test_one_that_is_being_fetched_or_broken_is_no_fault_of_another() -> None:
    broken = FoundFile("b.gguf", "/nowhere/b", problem="its link leads nowhere")
    other = FoundFile("README.md", "/nowhere/r", problem="its link leads nowhere")
    files = [FoundFile("a.gguf", "/nowhere/a"), broken, other, FoundFile("c.gguf.part", "/nowhere/c")]
    models = split_models(files)
    assert {name: (model.broken_file, model.unfinished) for name, model in models.items()} == {
        "a": (None, 0),
        "b": ("b.gguf: its link leads nowhere", 0),
        "c": (None, 1),
    }
