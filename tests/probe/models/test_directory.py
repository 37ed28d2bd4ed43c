import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.probe.models.directory import ModelFolders, downloaded_revision
from gpu_agent.probe.models.files import MAX_DEPTH, FolderReader, open_root
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import (
    GGUF,
    ONNX,
    open_folder,
    revision,
    tensors,
    unprivileged,
    whole_weights,
)


def found_in(root: Path) -> tuple[dict[str, Model], dict[str, str]]:
    source = ModelFolders([root])
    readings = [source.read(unit) for unit in source.units().units]
    models = {model.model_id: model for reading in readings for model in reading.models}
    return models, {name: why for reading in readings for name, why in reading.problems.items()}


def write(path: Path, content: bytes | str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = whole_weights(path.name) if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_model_json_states_the_model(tmp_path: Path) -> None:
    stated = {"model_id": "my/asr", "version": 3, "kind": "asr", "src_lang": "de", "dialect": "bavarian"}
    write(tmp_path / "folder" / "model.json", json.dumps(stated))
    write(tmp_path / "folder" / "weights.onnx", ONNX)
    models, problems = found_in(tmp_path)
    assert problems == {}
    assert models == {
        "my/asr": Model(
            model_id="my/asr",
            version="3",
            kind="asr",
            src_lang="de",
            dialect="bavarian",
            source="directory",
            size_bytes=len(ONNX),
            format="onnx",
        )
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": "1"}', '{"model_id": []}', "\xff"])
def test_a_broken_model_json_is_a_model_in_error(tmp_path: Path, text: str) -> None:
    write(tmp_path / "folder" / "model.json", text.encode("latin-1"))
    models, _ = found_in(tmp_path)
    assert models["folder"].status is ModelStatus.ERROR
    assert models["folder"].detail == "its model.json is no JSON object with a model_id"


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m.onnx", "m.plan", "m.engine", "M.GGUF"])
def test_a_folder_with_weights_is_one_model_named_by_its_path(tmp_path: Path, name: str) -> None:
    write(tmp_path / "org" / "model" / name)
    write(tmp_path / "org" / "model" / "extra" / "model.json", "{}")
    models, _ = found_in(tmp_path)
    assert list(models) == ["org/model"]
    assert (models["org/model"].status, models["org/model"].version) == (ModelStatus.READY, "unversioned")


def test_loose_files_are_one_model_each_and_parts_are_one_together(tmp_path: Path) -> None:
    write(tmp_path / "small.gguf")
    write(tmp_path / "big-00001-of-00002.gguf")
    write(tmp_path / "half.gguf.part")
    write(tmp_path / "notes.txt")
    models, _ = found_in(tmp_path)
    assert {name: model.status for name, model in models.items()} == {
        "small": ModelStatus.READY,
        "big": ModelStatus.ERROR,
        "half": ModelStatus.DOWNLOADING,
    }
    write(tmp_path / "big-00002-of-00002.gguf")
    models, _ = found_in(tmp_path)
    assert (models["big"].status, models["big"].size_bytes) == (ModelStatus.READY, 2 * len(GGUF))


def test_weights_that_end_early_are_an_error_with_what_is_here(tmp_path: Path) -> None:
    whole = tensors(1000)
    weights = write(tmp_path / "m" / "model.safetensors", whole)
    models, _ = found_in(tmp_path)
    assert (models["m"].status, models["m"].size_bytes) == (ModelStatus.READY, len(whole))
    os.truncate(weights, 500)
    models, _ = found_in(tmp_path)
    assert models["m"].status is ModelStatus.ERROR
    assert models["m"].detail == f"model.safetensors: 500 of {len(whole)} bytes are here"


def test_files_that_an_index_names_and_that_are_not_here_are_counted(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}
    write(tmp_path / "m" / "model.safetensors.index.json", json.dumps(index))
    write(tmp_path / "m" / "one.safetensors", tensors())
    models, _ = found_in(tmp_path)
    assert models["m"].detail == "1 of 2 files that its index names are here"
    write(tmp_path / "m" / "two.safetensors", tensors())
    models, _ = found_in(tmp_path)
    assert (models["m"].status, models["m"].size_bytes) == (ModelStatus.READY, 2 * len(tensors()))


def test_an_engine_names_what_it_was_built_from(tmp_path: Path) -> None:
    config = {"pretrained_config": {"architecture": "LlamaForCausalLM"}}
    write(tmp_path / "m" / "config.json", json.dumps(config))
    write(tmp_path / "m" / "rank0.engine")
    models, _ = found_in(tmp_path)
    assert (models["m"].kind, models["m"].format) == ("llm", "tensorrt")


def test_a_triton_model_has_its_highest_numbered_folder_as_version(tmp_path: Path) -> None:
    write(tmp_path / "detector" / "config.pbtxt", 'backend: "tensorrt"')
    models, _ = found_in(tmp_path)
    assert models["detector"].detail == "it has no numbered version folder"
    for version in ("2", "10", "next"):
        write(tmp_path / "detector" / version / "model.plan")
    models, _ = found_in(tmp_path)
    model = models["detector"]
    assert (model.status, model.version, model.format) == (ModelStatus.READY, "10", "tensorrt")


def test_a_root_that_is_itself_a_model_is_one_model(tmp_path: Path) -> None:
    write(tmp_path / "model.json", '{"model_id": "whole"}')
    write(tmp_path / "part" / "weights.onnx")
    models, _ = found_in(tmp_path)
    assert list(models) == ["whole"]


def test_a_download_of_the_hub_into_a_folder_gives_its_revision(tmp_path: Path) -> None:
    write(tmp_path / "m" / "model.safetensors", tensors())
    write(
        tmp_path / "m" / ".cache" / "huggingface" / "download" / "config.json.metadata",
        revision(5) + "\netag\n",
    )
    models, _ = found_in(tmp_path)
    assert (models["m"].version, models["m"].revision) == (revision(5)[:12], revision(5))


def test_a_folder_being_fetched_is_downloading(tmp_path: Path) -> None:
    write(tmp_path / "m" / "model.safetensors.incomplete")
    models, _ = found_in(tmp_path)
    assert models["m"].status is ModelStatus.DOWNLOADING


def test_weights_linked_from_outside_the_root_are_an_error_and_not_read(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "big.gguf")
    (tmp_path / "root" / "m").mkdir(parents=True)
    (tmp_path / "root" / "m" / "big.gguf").symlink_to(tmp_path / "elsewhere" / "big.gguf")
    models, _ = found_in(tmp_path / "root")
    assert models["m"].status is ModelStatus.ERROR
    assert "leaves the cache" in str(models["m"].detail)


def test_a_linked_folder_and_one_too_deep_are_problems_not_models(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "big.gguf")
    root = tmp_path / "root"
    write(root.joinpath(*["d"] * (MAX_DEPTH + 2), "deep.gguf"))
    (root / "link").symlink_to(tmp_path / "elsewhere")
    models, problems = found_in(root)
    assert models == {}
    assert "it is a link" in problems["link"]
    assert "folders deep" in problems["/".join("d" * (MAX_DEPTH + 1))]


def test_a_link_to_itself_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    write(tmp_path / "m" / "m.gguf")
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "a").symlink_to("a")
    models, problems = found_in(tmp_path)
    assert (list(models), problems) == (["m"], {})


def test_folders_without_models_are_no_problem(tmp_path: Path) -> None:
    write(tmp_path / "src" / "main.py")
    write(tmp_path / ".git" / "model.json", "{}")
    assert found_in(tmp_path) == ({}, {})


NAMES = st.sampled_from(
    ["model.json", "config.pbtxt", "config.json", "m.gguf", "m.onnx.part", "1", "a", ".cache", "\udcff", "\n"]
)
LEAVES = st.sampled_from(
    [b"", b"{", b"[" * 5000, b'{"model_id": 1}', b'{"model_id": "x", "kind": []}', b"GGUF"]
)
LINKS = st.sampled_from(["..", "/", "a", "m.gguf", "model.json"])
TREES = st.recursive(LEAVES | LINKS, lambda part: st.dictionaries(NAMES, part, max_size=4), max_leaves=12)


def grow(path: Path, tree: object) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, part in tree.items():
            grow(path / name, part)
    elif isinstance(tree, str):
        path.symlink_to(tree)
    elif isinstance(tree, bytes):
        path.write_bytes(tree)


@settings(max_examples=200)
@given(st.dictionaries(NAMES, TREES, max_size=3))
def test_no_tree_of_files_makes_a_source_raise_or_show_a_path(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        grow(root, tree)
        models, problems = found_in(root)
        for text in (*problems.values(), *(str(model) for model in models.values())):
            text.encode()
            assert folder not in text


def test_a_closed_folder_is_a_problem_and_hides_no_other() -> None:
    with open_folder() as root:
        (root / "lost+found").mkdir(mode=0)
        write(root / "m" / "m.gguf")
        with unprivileged():
            models, problems = found_in(root)
    assert list(models) == ["m"]
    assert problems == {"lost+found": "permission denied"}


def test_a_file_of_weights_without_a_name_is_a_problem_of_its_root(tmp_path: Path) -> None:
    write(tmp_path / ".gguf")
    write(tmp_path / "good.gguf")
    models, problems = found_in(tmp_path)
    assert set(models) == {"good"}
    assert "without a name" in problems["."]


@pytest.mark.parametrize("field", ["model_id", "version"])
def test_a_stated_name_beyond_all_bounds_is_a_problem_of_its_folder(tmp_path: Path, field: str) -> None:
    write(
        tmp_path / "folder" / "model.json", json.dumps({"model_id": "m", "version": "1", field: "x" * 1025})
    )
    models, problems = found_in(tmp_path)
    assert models == {}
    assert "1024 characters" in problems["folder"]


def test_weights_that_are_empty_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "m" / "m.gguf", b"")
    models, _ = found_in(tmp_path)
    assert (models["m"].status, models["m"].detail) == (ModelStatus.ERROR, "m.gguf: it is empty")


@pytest.mark.parametrize("name", ["m.plan", "m.engine", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_no_weights_of_any_format(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m" / "model.json", '{"model_id": "m"}')
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    write(tmp_path / "m" / name, pointer)
    models, _ = found_in(tmp_path)
    assert models["m"].status is ModelStatus.ERROR
    assert models["m"].detail == f"{name}: it is a pointer of Git LFS; fetch the file that it stands for"
    write(tmp_path / "m" / name, b"x" * 60)
    models, _ = found_in(tmp_path)
    assert models["m"].status is ModelStatus.READY


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m.onnx"])
@pytest.mark.parametrize("content", [GGUF[:9], tensors()[:9], ONNX[:9], b"no such file"])
def test_a_damaged_file_is_not_read_again_before_it_changes(
    tmp_path: Path, name: str, content: bytes
) -> None:
    weights = write(tmp_path / "m" / name, content)
    source = ModelFolders([tmp_path])
    (reading,) = [one for unit in source.units().units if (one := source.read(unit)).models]
    assert reading.watched[str(weights)] is not None


def noted(folder: Path, text: str | None) -> str | None:
    if text is not None:
        notes = folder / ".cache" / "huggingface" / "download"
        notes.mkdir(parents=True)
        (notes / "config.json.lock").touch()
        (notes / "config.json.metadata").write_text(text)
    return downloaded_revision(FolderReader(open_root(folder)), str(folder))


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
