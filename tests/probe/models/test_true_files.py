"""Files of the true writer libraries, whole and cut at random places, in every source."""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import pytest

from gpu_agent.probe.models.directory import ModelFolders
from gpu_agent.probe.models.gguf import _BLOCKS
from gpu_agent.probe.models.huggingface import HubCache
from gpu_agent.probe.models.ollama import OllamaStore
from gpu_agent.probe.models.source import ModelSource
from gpu_agent.wire.inventory import Model, ModelStatus
from tests.probe.models.caches import repository, revision
from tests.probe.models.true_files import QUANTIZED, WRITERS, TrueFile, write_onnx_in_parts

CUTS = 80
"""Of each format in each source: 1 040 in all."""
FILES = 5
"""Of each format in each source, whole."""


def lay_in_a_folder(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    (root / name).mkdir(parents=True)
    for file, content in files.items():
        (root / name / file).write_bytes(content)


def lay_loose(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    del name
    root.mkdir()
    for file, content in files.items():
        (root / file).write_bytes(content)


def lay_in_a_hub_cache(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    repository(root, f"org/{name}").snapshot(revision(1), dict(files))


def lay_in_ollamas_store(root: Path, name: str, files: Mapping[str, bytes]) -> None:
    """With the size that the file has in the manifest: its header alone can say that it was cut."""
    (content,) = files.values()
    config = json.dumps({"model_format": "gguf", "model_family": "llama"}).encode()
    stated = []
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for kind, blob in (("docker.container.image.v1+json", config), ("ollama.image.model", content)):
        digest = hashlib.sha256(blob).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(blob)
        media = f"application/vnd.{kind}"
        stated.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(blob)})
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"config": stated[0], "layers": stated[1:]}))


SOURCES: Mapping[
    str, tuple[Callable[[list[Path]], ModelSource], Callable[[Path, str, Mapping[str, bytes]], None]]
] = {
    "folder": (ModelFolders, lay_in_a_folder),
    "loose": (ModelFolders, lay_loose),
    "hub": (HubCache, lay_in_a_hub_cache),
    "ollama": (OllamaStore, lay_in_ollamas_store),
}
CASES = [(kind, source) for kind in WRITERS for source in SOURCES if source != "ollama" or kind == "gguf"]


def found(source: Callable[[list[Path]], ModelSource], root: Path) -> dict[str, Model]:
    reader = source([root])
    return {model.model_id: model for unit in reader.units().units for model in reader.read(unit).models}


def whole(file: TrueFile) -> dict[str, bytes]:
    return {file.name: file.content, **file.beside}


@pytest.mark.parametrize(("kind", "source"), CASES)
def test_whole_files_are_ready_and_cut_ones_never(tmp_path: Path, kind: str, source: str) -> None:
    dice = random.Random(f"{kind} {source}")  # noqa: S311  cuts, not secrets
    make, lay = SOURCES[source]
    written = []
    for number in range(FILES):
        folder = tmp_path / f"written{number}"
        folder.mkdir()
        written.append(WRITERS[kind](folder, dice))
        root = tmp_path / f"whole{number}"
        lay(root, "m", whole(written[-1]))
        (model,) = found(make, root).values()
        assert (model.status, model.detail) == (ModelStatus.READY, None)
        if source != "ollama":
            assert model.size_bytes == sum(map(len, whole(written[-1]).values()))
            assert model.format == kind.partition(" ")[0]
    for number in range(CUTS):
        file = dice.choice(written)
        files = whole(file)
        name = dice.choice(list(files))
        claimed = file.claimed if name == file.name else len(files[name])
        cut = files | {name: files[name][: dice.randrange(1 if source == "ollama" else 0, claimed)]}
        root = tmp_path / f"cut{number}"
        lay(root, "m", cut)
        (model,) = found(make, root).values()
        assert model.status is ModelStatus.ERROR, f"cut {number}: {name} at {len(cut[name])} of {claimed}"
        assert model.detail
        assert str(tmp_path) not in model.detail


def test_the_table_of_types_is_that_of_the_makers() -> None:
    assert {kind: gguf.GGML_QUANT_SIZES[kind] for kind in QUANTIZED} == {
        gguf.GGMLQuantizationType(kind): size for kind, size in _BLOCKS.items() if kind in QUANTIZED
    }


def test_a_big_endian_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    model = found(ModelFolders, tmp_path)["m"]
    assert model.status is ModelStatus.ERROR
    assert "big-endian" in str(model.detail)


FAKES = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "a pointer of Git LFS",
    b"\n<!doctype html>\n<title>404</title>": "a web page",
    b"Repository not found, or it is private.\n": "a text file",
}


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "onnx"])
@pytest.mark.parametrize("source", ["folder", "loose", "hub", "ollama"])
def test_what_is_no_such_file_at_all_is_an_error_in_plain_words(
    tmp_path: Path, kind: str, source: str
) -> None:
    make, lay = SOURCES[source]
    for number, (content, words) in enumerate(FAKES.items()):
        lay(tmp_path / str(number), "m", {f"true.{kind}": content})
        (model,) = found(make, tmp_path / str(number)).values()
        assert model.status is ModelStatus.ERROR
        assert words in str(model.detail)


@pytest.mark.parametrize("source", ["folder", "loose", "hub"])
def test_one_broken_gguf_file_makes_no_other_an_error(tmp_path: Path, source: str) -> None:
    make, lay = SOURCES[source]
    dice = random.Random(source)  # noqa: S311  as above
    file = WRITERS["gguf"](tmp_path, dice)
    files = {
        "q4.gguf": file.content,
        "q8.gguf": file.content[: file.claimed - 1],
        "big-00001-of-00002.gguf": file.content,
        "big-00002-of-00002.gguf": file.content,
        "half-00001-of-00003.gguf": file.content,
    }
    lay(tmp_path / "root", "m", files)
    begin = {"folder": "m/", "loose": "", "hub": "org/m/"}[source]
    assert {name: model.status for name, model in found(make, tmp_path / "root").items()} == {
        f"{begin}q4": ModelStatus.READY,
        f"{begin}q8": ModelStatus.ERROR,
        f"{begin}big": ModelStatus.READY,
        f"{begin}half": ModelStatus.ERROR,
    }


@pytest.mark.parametrize("source", ["folder", "loose", "hub"])
def test_weights_of_an_onnx_file_that_are_not_here_are_named(tmp_path: Path, source: str) -> None:
    make, lay = SOURCES[source]
    file = write_onnx_in_parts(tmp_path, random.Random(1))  # noqa: S311  as above
    lay(tmp_path / "root", "m", {file.name: file.content})
    (model,) = found(make, tmp_path / "root").values()
    assert model.status is ModelStatus.ERROR
    assert str(model.detail).endswith("are not here")
    assert any(name in str(model.detail) for name in file.beside)


def test_a_stated_folder_with_several_gguf_files_is_the_one_model_that_it_states(tmp_path: Path) -> None:
    content = WRITERS["gguf"](tmp_path, random.Random(2)).content  # noqa: S311  as above
    files = {"a.gguf": content, "b.gguf": content, "model.json": b'{"model_id": "ours"}'}
    lay_in_a_folder(tmp_path / "root", "m", files)
    assert set(found(ModelFolders, tmp_path / "root")) == {"ours"}


def test_a_hub_revision_that_gets_another_gguf_file_stays_ready_with_those_it_has(tmp_path: Path) -> None:
    content = WRITERS["gguf"](tmp_path, random.Random(3)).content  # noqa: S311  as above
    made = repository(tmp_path / "hub", "org/m")
    made.snapshot(revision(1), {"a.gguf": content, "b-00001-of-00002.gguf": content})
    made.incomplete()
    assert {name: model.status for name, model in found(HubCache, tmp_path / "hub").items()} == {
        "org/m/a": ModelStatus.READY,
        "org/m/b": ModelStatus.DOWNLOADING,
    }
