"""Caches that the hub's own library filled from a hub on loopback, and what it finds in them itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.weights import format_of
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import ONNX, open_folder, tensors, unprivileged
from tests.probe.models.local_hub import LocalHub, halfway

WHISPER = {
    "config.json": json.dumps({"architectures": ["WhisperForConditionalGeneration"]}).encode(),
    "model-00001-of-00002.safetensors": tensors(3000),
    "model-00002-of-00002.safetensors": tensors(2000),
    "onnx/encoder.onnx": ONNX,
    ".gitattributes": b"*.bin filter=lfs",
}
BARK = {"README.md": b"---\npipeline_tag: text-to-speech\n---\nA voice.", "voice.bin": b"4" * 500}


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def found_in(cache: Path) -> dict[tuple[str, str | None], Model]:
    source = HubCache([cache])
    readings = [source.read(unit) for unit in source.units().units]
    return {(model.model_id, model.revision): model for reading in readings for model in reading.models}


def statuses(cache: Path) -> dict[str, ModelStatus]:
    return {model_id: model.status for (model_id, _), model in found_in(cache).items()}


def assert_alike(cache: Path) -> None:
    """Each revision that the library finds is a ready model here, with the same weights."""
    theirs = {
        (repository.repo_id, revision.commit_hash): sum(
            file.size_on_disk for file in revision.files if format_of(file.file_name)
        )
        for repository in scan_cache_dir(cache).repos
        for revision in repository.revisions
    }
    ready = {key: model for key, model in found_in(cache).items() if model.status is ModelStatus.READY}
    assert {key: model.size_bytes for key, model in ready.items()} == theirs


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_what_the_library_fetched_is_found_as_it_finds_it_itself(
    hub: LocalHub, cache: Path, *, links: bool
) -> None:
    commit = hub.commit("openai/whisper-tiny", WHISPER)
    hub.commit("suno/bark", BARK)
    hub.fetched(cache, "openai/whisper-tiny", links=links)
    hub.fetched(cache, "suno/bark", links=links)
    assert_alike(cache)
    found = found_in(cache)
    whisper = found["openai/whisper-tiny", commit]
    assert (whisper.kind, whisper.format, whisper.version) == ("asr", "safetensors", commit[:12])
    assert {model.kind for model in found.values()} == {"asr", "tts"}


def test_two_revisions_that_share_files_and_one_fetched_by_its_commit_are_found(
    hub: LocalHub, cache: Path
) -> None:
    commits = [hub.commit("a/b", {**WHISPER, "note.txt": note}) for note in (b"1", b"2", b"3")]
    for ref in ("main", commits[0], commits[1]):
        hub.fetched(cache, "a/b", ref)
    assert {revision for _, revision in found_in(cache)} == set(commits)
    assert_alike(cache)


def test_a_download_is_downloading_while_it_runs_after_it_was_killed_and_ready_when_resumed(
    hub: LocalHub, cache: Path
) -> None:
    hub.commit("a/b", WHISPER)
    with halfway(hub, cache, "a/b", name="model-00002-of-00002.safetensors") as program:
        assert program.poll() is None
        assert statuses(cache) == {"a/b": ModelStatus.DOWNLOADING}
    assert statuses(cache) == {"a/b": ModelStatus.DOWNLOADING}
    hub.release.set()
    hub.fetched(cache, "a/b")
    assert statuses(cache) == {"a/b": ModelStatus.READY}
    assert_alike(cache)


def blob_of(cache: Path, repository: str, name: str) -> Path:
    (link,) = (cache / repository / "snapshots").glob(f"*/{name}")
    return link.resolve()


def test_what_breaks_afterwards_is_an_error_with_its_reason_and_hides_nothing_that_the_library_finds(
    hub: LocalHub, cache: Path
) -> None:
    names = ("lost", "linkless", "emptied", "refless", "dangling", "whole")
    for name in names:
        hub.commit(f"a/{name}", {**WHISPER, "name": name.encode()})
        hub.fetched(cache, f"a/{name}")
    blob_of(cache, "models--a--lost", "config.json").unlink()
    shutil.rmtree(cache / "models--a--linkless" / "blobs")
    shutil.rmtree(cache / "models--a--emptied" / "snapshots")
    shutil.rmtree(cache / "models--a--refless" / "refs")
    (cache / "models--a--dangling" / "refs" / "main").write_text("f" * 40)
    (cache / "models--not-a-repository").touch()
    details = {(name, model.status): model.detail for (name, _), model in found_in(cache).items()}
    assert details == {
        ("a/lost", ModelStatus.ERROR): "config.json: its link leads nowhere",
        (
            "a/linkless",
            ModelStatus.ERROR,
        ): f".gitattributes: its link leads nowhere (and {len(WHISPER)} more)",
        ("a/emptied", ModelStatus.ERROR): "ref main names a snapshot that is not here",
        ("a/refless", ModelStatus.READY): None,
        ("a/dangling", ModelStatus.READY): None,
        ("a/dangling", ModelStatus.ERROR): "ref main names a snapshot that is not here",
        ("a/whole", ModelStatus.READY): None,
        ("not-a-repository", ModelStatus.ERROR): "it is not a folder",
    }
    theirs = {repository.repo_id for repository in scan_cache_dir(cache).repos}
    ready = {name for (name, status) in details if status is ModelStatus.READY}
    assert theirs <= ready | {"a/lost", "a/emptied", "a/linkless"}


def test_a_repository_that_may_not_be_read_is_an_error_and_hides_no_other(hub: LocalHub) -> None:
    with open_folder() as folder:
        cache = folder / "cache"
        for name in ("a/closed", "a/open"):
            hub.commit(name, BARK)
            hub.fetched(cache, name)
        (cache / "models--a--closed" / "snapshots").chmod(0)
        with unprivileged():
            assert statuses(cache) == {"a/closed": ModelStatus.ERROR, "a/open": ModelStatus.READY}
