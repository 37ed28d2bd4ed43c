import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.wire.inventory import ModelStatus
from tests.probe.models.caches import GGUF, repository, tensors, whisper_files
from tests.probe.models.hub_models import ONE, models_in


def test_a_link_out_of_the_cache_is_not_followed(tmp_path: Path) -> None:
    hub, outside = tmp_path / "hub", tmp_path / "secret"
    outside.write_text('{"model_type": "whisper"}')
    folder = repository(hub, "a/b").snapshot(ONE, {"model.safetensors": tensors()})
    (folder / "config.json").symlink_to(outside)
    (model,) = models_in(hub)
    assert (model.status, model.kind) == (ModelStatus.ERROR, "other")
    assert model.detail is not None
    assert "leaves the cache" in model.detail
    assert str(tmp_path) not in model.detail


def test_a_repository_that_is_a_link_names_the_next_step(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    repository(tmp_path / "big-disk", "a/b").snapshot(ONE, whisper_files())
    (hub / "models--a--b").symlink_to(tmp_path / "big-disk" / "models--a--b")
    (model,) = models_in(hub)
    assert model.status is ModelStatus.ERROR
    assert model.detail == "it is a link; add the folder it leads to as a root of its own"


def test_links_to_blobs_outside_the_cache_are_not_followed(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    made = repository(hub, "a/b")
    made.snapshot(ONE, whisper_files())
    (made.path / "blobs").rename(tmp_path / "blobs")
    (made.path / "blobs").symlink_to(tmp_path / "blobs")
    assert [model.status for model in models_in(hub)] == [ModelStatus.ERROR]


def test_a_cache_that_is_itself_a_link_is_followed_because_it_was_named(tmp_path: Path) -> None:
    repository(tmp_path / "real", "a/b").snapshot(ONE, whisper_files())
    (tmp_path / "hub").symlink_to(tmp_path / "real")
    assert [model.status for model in models_in(tmp_path / "hub")] == [ModelStatus.READY]


def test_datasets_locks_and_empty_shells_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "datasets--a--b" / "snapshots" / ONE / "x").mkdir(parents=True)
    (tmp_path / ".locks" / "models--a--b").mkdir(parents=True)
    (repository(tmp_path, "a/b").path / ".no_exist").mkdir()
    (tmp_path / "version.txt").write_text("1")
    assert models_in(tmp_path) == ()


def test_a_cache_that_is_not_there_is_no_problem(tmp_path: Path) -> None:
    assert HubCache([tmp_path / "none"]).units().units == ()
    assert HubCache([tmp_path / "none"]).units().problems == {}


def test_a_name_of_bytes_that_are_no_text_still_makes_a_model_for_the_wire(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/models--a--\xff\xfe/snapshots/" + ONE.encode()
    os.makedirs(folder)  # noqa: PTH103  pathlib takes no bytes
    with open(folder + b"/model.gguf", "wb") as file:  # noqa: PTH123  the same
        file.write(GGUF)
    (model,) = models_in(tmp_path)
    assert model.model_id == "a/\ufffd\ufffd"
    assert model.status is ModelStatus.READY


def test_a_pipe_in_place_of_a_config_blocks_nothing(tmp_path: Path) -> None:
    folder = repository(tmp_path, "a/b").snapshot(ONE, {"model.safetensors": tensors()})
    os.mkfifo(folder / "config.json")
    (model,) = models_in(tmp_path)
    assert (model.status, model.detail) == (ModelStatus.ERROR, "config.json: it is not a regular file")


NAMES = st.sampled_from(
    ["blobs", "refs", "snapshots", "main", ONE, "x.incomplete", "config.json", "README.md", "modules.json"]
) | st.sampled_from(
    ["model.safetensors", "model-00001-of-00002.gguf", "model.safetensors.index.json", "\udcff", "\n", "m--c"]
)
LEAVES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"{", b"[" * 5000, b'{"architectures": [1]}', b"---\npipeline_tag: \xff", b"GGUF"]),
    st.sampled_from(["link:..", "link:/", "link:x", "link:../../blobs/x.incomplete", "pipe", "secret"]),
)
TREES = st.recursive(LEAVES, lambda part: st.dictionaries(NAMES, part, max_size=4), max_leaves=12)
REPOSITORIES = st.fixed_dictionaries(
    {}, optional={"refs": TREES, "blobs": TREES, "snapshots": st.dictionaries(NAMES, TREES, max_size=3)}
)


def grow(path: Path, tree: object) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, part in tree.items():
            grow(path / name, part)
    elif tree == "pipe":
        os.mkfifo(path)
    elif tree == "secret":
        path.mkdir(mode=0)
    elif isinstance(tree, str):
        path.symlink_to(tree.removeprefix("link:"))
    elif isinstance(tree, bytes):
        path.write_bytes(tree)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["models--a--b", "models--c"]), REPOSITORIES | TREES, max_size=2))
def test_no_tree_of_files_makes_it_raise_or_write(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        hub = Path(folder) / "hub"
        grow(hub, tree)
        before = sorted(hub.rglob("*"))
        for model in models_in(hub):
            model.model_id.encode()
            assert folder not in (model.detail or "")
        assert sorted(hub.rglob("*")) == before


@pytest.mark.parametrize("name", ["models--", "models----", "models-- "])
def test_a_repository_without_a_name_is_a_problem_and_hides_no_other(tmp_path: Path, name: str) -> None:
    nameless = tmp_path / name / "blobs"
    nameless.mkdir(parents=True)
    (nameless / "x.incomplete").touch()
    repository(tmp_path, "a/b").snapshot(ONE, whisper_files())
    cache = HubCache([tmp_path])
    readings = [cache.read(unit) for unit in cache.units().units]
    assert [model.model_id for reading in readings for model in reading.models] == ["a/b"]
    assert [place for reading in readings for place in reading.problems] == [name]
