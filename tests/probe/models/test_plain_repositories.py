"""A repository that is as the hub's library leaves it is read quickly: it must make no difference."""

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpu_agent.probe.models.files import open_root
from gpu_agent.probe.models.plain_repository import list_plain
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import (
    GGUF,
    ONNX,
    Repository,
    open_folder,
    repository,
    tensors,
    unprivileged,
    whisper_files,
)
from tests.probe.models.hub_models import ONE, TWO, models_in

Change = Callable[[Repository, Path, random.Random], None]

FILES: Mapping[str, bytes | str] = {
    **whisper_files(),
    "config.json": '{"architectures": ["BertModel"]}',
    "README.md": "---\npipeline_tag: translation\n---\n",
    "modules.json": "[]",
    "model-00001-of-00002.safetensors": tensors(7),
    "model-00002-of-00002.safetensors": tensors(9),
    "model.safetensors.index.json": "{}",
    "pytorch_model.bin": b"x" * 2000,
    "cut.safetensors": tensors(50)[:-1],
    "empty.safetensors": b"",
    "model.onnx": ONNX,
    "one.gguf": GGUF,
    "two.gguf": GGUF + b"\0",
    "onnx/model.onnx": ONNX,
    "vocab.txt": "words",
}


def remove_a_blob(made: Repository, _snapshot: Path, dice: random.Random) -> None:
    dice.choice(sorted((made.path / "blobs").iterdir())).unlink()


def put_a_link_in_place_of_a_blob(made: Repository, _snapshot: Path, dice: random.Random) -> None:
    blob = dice.choice(sorted((made.path / "blobs").iterdir()))
    blob.rename(made.path / "moved")
    blob.symlink_to(dice.choice((made.path / "moved", Path("/etc/hostname"), Path("nowhere"))))


def put_a_file_in_place_of_a_link(_made: Repository, snapshot: Path, _dice: random.Random) -> None:
    (snapshot / "LICENSE").write_text("free")


def add_an_odd_link(_made: Repository, snapshot: Path, dice: random.Random) -> None:
    (snapshot / "odd.safetensors").symlink_to(dice.choice(("../../blobs/..", "../../refs/main", "/etc", ".")))


def begin_a_download(made: Repository, _snapshot: Path, _dice: random.Random) -> None:
    made.incomplete()


def add_a_revision(made: Repository, _snapshot: Path, dice: random.Random) -> None:
    made.snapshot(TWO, whisper_files(), ref=dice.choice((None, "pr/1", "main")))


def add_a_dangling_ref(made: Repository, _snapshot: Path, dice: random.Random) -> None:
    made.ref(dice.choice(("main", "other")), dice.choice((TWO, "", "\xff", "v" * 999)))


def remove_the_refs(made: Repository, _snapshot: Path, _dice: random.Random) -> None:
    shutil.rmtree(made.path / "refs")


def add_an_odd_snapshot(made: Repository, snapshot: Path, dice: random.Random) -> None:
    place = made.path / "snapshots" / dice.choice((TWO, ".hidden"))
    dice.choice((place.mkdir, place.touch, lambda: place.symlink_to(snapshot)))()


def leave_it(_made: Repository, _snapshot: Path, _dice: random.Random) -> None:
    pass


CHANGES: tuple[Change, ...] = (
    remove_a_blob,
    put_a_link_in_place_of_a_blob,
    put_a_file_in_place_of_a_link,
    add_an_odd_link,
    begin_a_download,
    add_a_revision,
    add_a_dangling_ref,
    remove_the_refs,
    add_an_odd_snapshot,
    leave_it,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_quick_look_and_a_close_one_find_the_same_models(tmp_path: Path, change: Change) -> None:
    for seed in range(8):
        dice = random.Random(seed)  # noqa: S311 - the same tree for the same seed, no secret
        hub = tmp_path / str(seed)
        made = repository(hub, dice.choice(("a/b", "Helsinki-NLP/opus-mt-en-de")))
        names = dice.sample(sorted(FILES), dice.randint(1, 5))
        snapshot = made.snapshot(ONE, {name: FILES[name] for name in names})
        change(made, snapshot, dice)
        quick = models_in(hub)
        assert quick == looked_at_closely(made, hub), (seed, names)


def looked_at_closely(made: Repository, hub: Path) -> tuple[Model, ...]:
    """What is found beside a folder among the blobs, which says nothing of any model."""
    (made.path / "blobs" / "folder").mkdir()
    assert list_plain(open_root(hub), str(made.path)) is None
    return models_in(hub)


def test_what_the_library_leaves_is_plain_whether_it_has_refs_or_not(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, whisper_files())
    made.snapshot(TWO, whisper_files(), ref=None)
    for _ in range(2):
        plain = list_plain(open_root(tmp_path), str(made.path))
        assert plain is not None
        assert [snapshot.revision for snapshot in plain.snapshots] == [ONE, TWO]
        assert all(set(snapshot.names) == set(whisper_files()) for snapshot in plain.snapshots)
        if (made.path / "refs").exists():
            shutil.rmtree(made.path / "refs")


def test_the_bound_on_entries_holds_for_all_revisions_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_agent.probe.models.plain_repository.MAX_ENTRIES", 8)
    monkeypatch.setattr("gpu_agent.probe.models.files.MAX_ENTRIES", 8)
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, whisper_files())
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.READY]
    made.snapshot(TWO, whisper_files())
    assert list_plain(open_root(tmp_path), str(made.path)) is None
    assert ModelStatus.ERROR in [model.status for model in models_in(tmp_path)]


def test_weights_that_may_not_be_read_are_an_error() -> None:
    with open_folder() as hub:
        folder = repository(hub, "a/b").snapshot(ONE, whisper_files())
        (folder / "model.safetensors").resolve().chmod(0)
        with unprivileged():
            assert [model.status for model in models_in(hub)] == [ModelStatus.ERROR]
