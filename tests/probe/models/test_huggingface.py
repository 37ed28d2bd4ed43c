import os
from pathlib import Path

import pytest

from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import ONNX, repository, tensors, whisper_files
from tests.probe.models.hub_models import ONE, TWO, models_in


def test_a_whole_snapshot_is_ready_with_its_revision_as_version(tmp_path: Path) -> None:
    repository(tmp_path, "openai/whisper-small").snapshot(ONE, whisper_files())
    assert models_in(tmp_path) == (
        Model(
            model_id="openai/whisper-small",
            version=ONE[:12],
            kind="asr",
            source="huggingface",
            revision=ONE,
            size_bytes=len(tensors(100)),
            format="safetensors",
        ),
    )


def test_a_snapshot_without_a_ref_is_a_model_too(tmp_path: Path) -> None:
    repository(tmp_path, "a/b").snapshot(ONE, whisper_files(), ref=None)
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.READY]


def test_files_in_place_of_links_count_as_on_file_systems_without_links(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / ONE
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(ONNX)
    (model,) = models_in(tmp_path)
    assert (model.status, model.format, model.size_bytes) == (ModelStatus.READY, "onnx", len(ONNX))


def test_a_model_of_which_only_the_description_was_fetched_is_not_ready(tmp_path: Path) -> None:
    described = {name: text for name, text in whisper_files().items() if name == "config.json"}
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, {**described, "tokenizer.json": "{}"})
    (model,) = models_in(tmp_path)
    assert (model.status, model.kind) == (ModelStatus.NOT_INSTALLED, "asr")
    assert model.detail == "its weights were never fetched, only what describes it"
    made.snapshot(TWO, whisper_files())
    assert {m.version: m.status for m in models_in(tmp_path)}[TWO[:12]] is ModelStatus.READY


def test_weights_of_a_format_without_a_name_count_when_they_are_large(tmp_path: Path) -> None:
    folder = repository(tmp_path, "a/b").snapshot(ONE, {**whisper_files(), "weights.new": "x"})
    (folder / "model.safetensors").unlink()
    with (folder / "weights.new").open("r+b") as file:
        file.truncate(32 << 20)
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.READY]


def test_two_revisions_are_two_versions_of_one_model(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, whisper_files(), ref=None)
    made.snapshot(TWO, whisper_files())
    assert [model.version for model in models_in(tmp_path)] == [ONE[:12], TWO[:12]]


def test_a_first_download_is_downloading_before_any_file_is_whole(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.ref("main", ONE)
    made.incomplete()
    (model,) = models_in(tmp_path)
    assert (model.status, model.version) == (ModelStatus.DOWNLOADING, ONE[:12])
    assert model.detail == "1 file is still being fetched"


def test_a_download_by_revision_is_downloading_before_its_snapshot_is_made(tmp_path: Path) -> None:
    repository(tmp_path, "a/b").incomplete()
    (model,) = models_in(tmp_path)
    assert (model.status, model.version) == (ModelStatus.DOWNLOADING, "unversioned")


def test_a_snapshot_being_filled_is_downloading(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, {"config.json": "{}"})
    made.incomplete()
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.DOWNLOADING]


def test_what_a_killed_attempt_left_beside_the_whole_blob_is_litter(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, whisper_files())
    blob = made.blob(b"whole")
    made.incomplete(f"{blob.name}.0a1b2c3d")
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.READY]
    blob.unlink()
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.DOWNLOADING]


def test_an_update_on_its_way_leaves_the_older_revision_ready(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    old = made.snapshot(ONE, whisper_files(), ref=None)
    made.ref("main", TWO)
    made.incomplete()
    assert {m.version: m.status for m in models_in(tmp_path)} == {
        ONE[:12]: ModelStatus.READY,
        TWO[:12]: ModelStatus.DOWNLOADING,
    }
    made.snapshot(TWO, {"config.json": "{}"})
    os.utime(old, (1, 1))
    assert {m.version: m.status for m in models_in(tmp_path)} == {
        ONE[:12]: ModelStatus.READY,
        TWO[:12]: ModelStatus.DOWNLOADING,
    }


def test_a_dangling_link_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    folder = made.snapshot(ONE, whisper_files())
    (folder / "model.safetensors").resolve().unlink()
    (model,) = models_in(tmp_path)
    assert (model.status, model.detail) == (
        ModelStatus.ERROR,
        "model.safetensors: its link leads nowhere",
    )


def test_a_dangling_ref_is_an_error_that_names_the_ref(tmp_path: Path) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, whisper_files(), ref=None)
    made.ref("refs/pr/1".removeprefix("refs/"), TWO)
    by_version = {model.version: model for model in models_in(tmp_path)}
    assert by_version[ONE[:12]].status is ModelStatus.READY
    assert by_version[TWO[:12]].status is ModelStatus.ERROR
    assert by_version[TWO[:12]].detail == "ref pr/1 names a snapshot that is not here"


def test_a_ref_that_holds_no_revision_is_an_error_without_a_version(tmp_path: Path) -> None:
    repository(tmp_path, "a/b").ref("main", "../../../etc/passwd")
    (model,) = models_in(tmp_path)
    assert (model.status, model.version) == (ModelStatus.ERROR, "unversioned")
    assert model.detail == "ref main holds no revision"


def test_parts_that_are_missing_make_an_error_that_counts_them(tmp_path: Path) -> None:
    files = {f"model-0000{n}-of-00003.safetensors": f"{n}" for n in (1, 3)}
    repository(tmp_path, "a/b").snapshot(ONE, files)
    (model,) = models_in(tmp_path)
    assert (model.status, model.detail) == (ModelStatus.ERROR, "2 of 3 parts of model.safetensors are here")


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin"])
def test_weights_that_are_empty_are_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    repository(tmp_path, "a/b").snapshot(ONE, {"config.json": "{}", name: ""})
    (model,) = models_in(tmp_path)
    assert (model.status, model.detail) == (ModelStatus.ERROR, f"{name}: it is empty")


def test_one_part_that_is_empty_is_an_error_and_an_empty_file_beside_the_weights_is_none(
    tmp_path: Path,
) -> None:
    made = repository(tmp_path, "a/b")
    made.snapshot(ONE, {f"model-0000{n}-of-00002.safetensors": tensors() * (n - 1) for n in (1, 2)})
    made.snapshot(TWO, {**whisper_files(), "training_args.bin": "", "added_tokens.json": ""})
    details = {model.version: (model.status, model.detail) for model in models_in(tmp_path)}
    assert details == {
        ONE[:12]: (ModelStatus.ERROR, "model-00001-of-00002.safetensors: it is empty"),
        TWO[:12]: (ModelStatus.READY, None),
    }


def test_an_empty_snapshot_is_not_installed(tmp_path: Path) -> None:
    (repository(tmp_path, "a/b").path / "snapshots" / ONE).mkdir(parents=True)
    assert [model.status for model in models_in(tmp_path)] == [ModelStatus.NOT_INSTALLED]


def test_one_broken_repository_does_not_hide_another(tmp_path: Path) -> None:
    (tmp_path / "models--a--broken").write_text("no folder at all")
    loop = repository(tmp_path, "b/loop").path / "snapshots"
    loop.symlink_to(loop)
    repository(tmp_path, "c/whole").snapshot(ONE, whisper_files())
    statuses = {model.model_id: model.status for model in models_in(tmp_path)}
    assert statuses == {
        "a/broken": ModelStatus.ERROR,
        "b/loop": ModelStatus.ERROR,
        "c/whole": ModelStatus.READY,
    }


def test_opus_models_have_the_languages_of_their_names(tmp_path: Path) -> None:
    repository(tmp_path, "Helsinki-NLP/opus-mt-en-de").snapshot(
        ONE, {"config.json": '{"architectures": ["MarianMTModel"]}', "pytorch_model.bin": "x"}
    )
    (model,) = models_in(tmp_path)
    assert (model.kind, model.src_lang, model.tgt_lang, model.format) == ("nmt", "en", "de", "pytorch")
