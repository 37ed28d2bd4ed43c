import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpu_agent.probe.models.ollama import OllamaStore
from gpu_agent.probe.models.scanner import ModelScanner
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import GGUF, open_folder, settle, unprivileged

USUAL = "registry.ollama.ai/library"
LLAMA = {"model_format": "gguf", "model_family": "llama", "model_type": "8.0B", "file_type": "Q4_0"}


@dataclass(frozen=True)
class Store:
    """A model folder as Ollama writes it."""

    path: Path

    def blob(self, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        place = self.place(f"sha256:{digest}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return {"mediaType": "x", "digest": f"sha256:{digest}", "size": len(data)}

    def place(self, digest: object) -> Path:
        return self.path / "blobs" / str(digest).replace(":", "-")

    def manifest(self, name: str, content: Mapping[str, object] | bytes) -> bytes:
        place = self.path / "manifests" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        place.write_bytes(text)
        return text

    def model(
        self, name: str = f"{USUAL}/llama3/8b", *, config: Mapping[str, str] = LLAMA, weights: bytes = b"GGUF"
    ) -> tuple[bytes, Path]:
        """One whole model; its manifest's text and its weights."""
        stated = self.blob(json.dumps(config).encode())
        layer = self.blob(weights)
        text = self.manifest(name, {"schemaVersion": 2, "config": stated, "layers": [layer]})
        return text, self.place(layer["digest"])


def found_in(root: Path) -> tuple[dict[str, Model], dict[str, str]]:
    store = OllamaStore([root])
    listing = store.units()
    readings = [store.read(unit) for unit in listing.units]
    models = {model.model_id: model for reading in readings for model in reading.models}
    problems = {name: why for reading in readings for name, why in reading.problems.items()}
    return models, {**listing.problems, **problems}


def test_a_tag_whose_blobs_are_whole_is_ready_with_the_id_that_ollama_shows(tmp_path: Path) -> None:
    text, weights = Store(tmp_path).model()
    digest = hashlib.sha256(text).hexdigest()
    size = weights.stat().st_size + len(json.dumps(LLAMA))
    ready = Model(
        model_id="llama3:8b",
        version=digest[:12],
        kind="llm",
        source="ollama",
        revision=digest,
        size_bytes=size,
        format="gguf",
    )
    assert found_in(tmp_path) == ({"llama3:8b": ready}, {})


def test_ollamas_default_host_and_namespace_are_left_out_of_the_id(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in (f"{USUAL}/a/latest", "registry.ollama.ai/ada/b/q4", "hf.co/org/c/Q8_0", "own/library/d/1"):
        store.model(name)
    models, _ = found_in(tmp_path)
    assert set(models) == {"a:latest", "ada/b:q4", "hf.co/org/c:Q8_0", "own/library/d:1"}


def test_two_tags_of_one_name_are_two_models(tmp_path: Path) -> None:
    Store(tmp_path).model(f"{USUAL}/llama3/8b")
    Store(tmp_path).model(f"{USUAL}/llama3/70b", weights=b"GGUF, and more")
    models, _ = found_in(tmp_path)
    assert {name: model.size_bytes for name, model in models.items()} == {
        "llama3:8b": 4 + len(json.dumps(LLAMA)),
        "llama3:70b": 14 + len(json.dumps(LLAMA)),
    }


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "llm"), ("nomic-bert", "embedding"), ("clip", "vision"), (None, "other")],
)
def test_the_family_in_ollamas_config_gives_the_kind(tmp_path: Path, family: str | None, kind: str) -> None:
    Store(tmp_path).model(config={"model_format": "gguf"} | ({"model_family": family} if family else {}))
    models, _ = found_in(tmp_path)
    assert models["llama3:8b"].kind == kind


@pytest.mark.parametrize("config", [b"{}", b"no json", json.dumps({"model_family": "llama"}).encode()])
def test_weights_of_which_no_format_is_stated_are_checked_as_gguf(tmp_path: Path, config: bytes) -> None:
    store = Store(tmp_path)
    for name, weights in (("page", b"<html>not found</html>"), ("whole", GGUF), ("cut", GGUF[:-1])):
        layer = {**store.blob(weights), "mediaType": "application/vnd.ollama.image.model"}
        store.manifest(f"{USUAL}/{name}/1", {"config": store.blob(config), "layers": [layer]})
    models, _ = found_in(tmp_path)
    assert {name: model.status for name, model in models.items()} == {
        "page:1": ModelStatus.ERROR,
        "whole:1": ModelStatus.READY,
        "cut:1": ModelStatus.ERROR,
    }
    assert "web page" in str(models["page:1"].detail)


def test_a_partial_blob_is_a_download(tmp_path: Path) -> None:
    _, weights = Store(tmp_path).model()
    weights.rename(f"{weights}-partial")
    Path(f"{weights}-partial-0").write_text("{}")
    models, _ = found_in(tmp_path)
    model = models["llama3:8b"]
    assert (model.status, model.detail) == (ModelStatus.DOWNLOADING, "1 file is still being fetched")


def test_a_missing_blob_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    _, weights = Store(tmp_path).model()
    weights.unlink()
    models, _ = found_in(tmp_path)
    model = models["llama3:8b"]
    shown = weights.name.removeprefix("sha256-")[:12]
    assert model.status is ModelStatus.ERROR
    assert model.detail == f"blob {shown} is not here; pull the model again"


@pytest.mark.parametrize("size", [0, 3, 5])
def test_a_blob_of_another_size_is_an_error(tmp_path: Path, size: int) -> None:
    _, weights = Store(tmp_path).model(weights=b"GGUF")
    os.truncate(weights, size)
    models, _ = found_in(tmp_path)
    model = models["llama3:8b"]
    assert model.status is ModelStatus.ERROR
    assert f"has {size} bytes in place of 4" in str(model.detail)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b'{"layers": 7}',
        b'{"config": {"digest": "sha256:../../../etc/passwd", "size": 1}, "layers": []}',
        json.dumps(
            {"config": {"digest": f"sha256:{'0' * 64}\n", "size": 1}, "layers": [{"digest": 1, "size": 1}]}
        ).encode(),
    ],
)
def test_a_broken_manifest_is_a_model_in_error_and_hides_no_other(tmp_path: Path, content: bytes) -> None:
    Store(tmp_path).manifest(f"{USUAL}/broken/1", content)
    Store(tmp_path).model()
    models, problems = found_in(tmp_path)
    assert problems == {}
    assert models["broken:1"].status is ModelStatus.ERROR
    assert models["broken:1"].detail == "its manifest names no blobs; pull the model again"
    assert models["llama3:8b"].status is ModelStatus.READY


def test_blobs_and_names_that_are_links_out_of_the_root_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "tag").write_text("{}")
    _, weights = Store(root).model()
    weights.rename(outside / "weights")
    weights.symlink_to(outside / "weights")
    (root / "manifests" / USUAL / "linked").symlink_to(outside)
    models, problems = found_in(root)
    assert models["llama3:8b"].status is ModelStatus.ERROR
    assert "leaves the cache" in str(models["llama3:8b"].detail)
    assert problems == {
        f"{USUAL}/linked": "it is a link; add the folder it leads to as a root of its own",
    }
    assert str(tmp_path) not in str(models)


@pytest.mark.parametrize("name", ["manifests", "manifests/registry.ollama.ai", f"manifests/{USUAL}"])
def test_no_folder_on_the_way_to_a_manifest_may_be_a_link(tmp_path: Path, name: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in ("a/b/c", "b/c", "c"):
        (outside / folder).mkdir(parents=True)
        (outside / folder / "secret").write_text("{}")
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(outside)
    models, problems = found_in(root)
    assert models == {}
    assert list(problems.values()) == ["it is a link; add the folder it leads to as a root of its own"]


def test_blobs_behind_a_link_are_not_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Store(root).model()
    (root / "blobs").rename(tmp_path / "blobs")
    (root / "blobs").symlink_to(tmp_path / "blobs")
    models, _ = found_in(root)
    model = models["llama3:8b"]
    assert (model.status, model.size_bytes, model.kind) == (ModelStatus.ERROR, None, "other")
    assert str(model.detail).startswith("its blobs: it is a link")


def test_a_root_that_is_itself_a_link_is_followed_because_it_was_named(tmp_path: Path) -> None:
    Store(tmp_path / "real").model()
    (tmp_path / "link").symlink_to("real")
    models, _ = found_in(tmp_path / "link")
    assert set(models) == {"llama3:8b"}


def test_where_ollama_keeps_nothing_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert found_in(tmp_path / "empty") == found_in(tmp_path / "none") == ({}, {})


def test_a_closed_folder_of_manifests_hides_no_other() -> None:
    with open_folder() as root:
        Store(root).model()
        (root / "manifests" / "closed").mkdir(mode=0)
        with unprivileged():
            models, problems = found_in(root)
    assert set(models) == {"llama3:8b"}
    assert problems == {"closed": "permission denied"}


def test_a_manifest_and_blobs_that_may_not_be_read_are_errors_with_that_reason() -> None:
    with open_folder() as root:
        Store(root).model(f"{USUAL}/a/1")
        Store(root).model(f"{USUAL}/b/1", weights=b"others")
        (root / "manifests" / USUAL / "a" / "1").chmod(0)
        (root / "blobs").chmod(0)
        with unprivileged():
            models, _ = found_in(root)
    assert {model.status for model in models.values()} == {ModelStatus.ERROR}
    assert models["a:1"].detail == "permission denied"
    assert str(models["b:1"].detail).endswith("permission denied")


def test_a_blob_that_comes_back_and_one_that_goes_show_in_the_next_scan(tmp_path: Path) -> None:
    _, weights = Store(tmp_path).model()
    settle(tmp_path)
    scanner = ModelScanner([OllamaStore([tmp_path])])

    def status() -> ModelStatus:
        (model,) = scanner.scan().models
        return model.status

    assert status() is ModelStatus.READY
    weights.rename(tmp_path / "aside")
    settle(tmp_path)
    assert status() is ModelStatus.ERROR
    (tmp_path / "aside").rename(f"{weights}-partial")
    settle(tmp_path)
    assert status() is ModelStatus.DOWNLOADING
    Path(f"{weights}-partial").rename(weights)
    settle(tmp_path)
    assert status() is ModelStatus.READY
    os.truncate(weights, 1)
    assert status() is ModelStatus.ERROR
