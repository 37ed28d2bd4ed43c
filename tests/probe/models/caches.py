"""Real caches on a real disk, in the layouts that others write."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

LONG_AGO = 1_600_000_000
LONG = 1_000_000
UNPRIVILEGED_UID = 65534


@dataclass(frozen=True)
class Repository:
    """A repository of a hub cache, written as the hub's own library writes it."""

    path: Path

    def snapshot(self, revision: str, files: Mapping[str, bytes | str], *, ref: str | None = "main") -> Path:
        folder = self.path / "snapshots" / revision
        for name, content in files.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = self.blob(content)
            link.symlink_to(os.path.relpath(blob, link.parent))
        if ref:
            self.ref(ref, revision)
        return folder

    def blob(self, content: bytes | str) -> Path:
        data = content.encode() if isinstance(content, str) else content
        blob = self.path / "blobs" / sha1(data).hexdigest()  # noqa: S324  the hub's own naming
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        return blob

    def ref(self, name: str, revision: str) -> None:
        ref = self.path / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(revision)

    def incomplete(self, name: str = "deadbeef") -> Path:
        blob = self.path / "blobs" / f"{name}.incomplete"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"half")
        return blob


def repository(hub: Path, model_id: str) -> Repository:
    path = hub / ("models--" + model_id.replace("/", "--"))
    path.mkdir(parents=True)
    return Repository(path)


def revision(number: int) -> str:
    return f"{number:x}".rjust(2, "0") * 20


def whisper_files() -> dict[str, bytes | str]:
    config = {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}
    return {"config.json": json.dumps(config), "model.safetensors": tensors(100)}


def settle(folder: Path, *, seconds_later: int = 0) -> None:
    """Make what is new look as if nothing had changed for years; `seconds_later` keeps a change visible."""
    for path in (folder, *folder.rglob("*")):
        if path.lstat().st_mtime > LONG_AGO + LONG:
            os.utime(path, (LONG_AGO + seconds_later,) * 2, follow_symlinks=False)


GGUF = b"GGUF\x03\0\0\0" + bytes(16)
"""A whole GGUF file without metadata and tensors."""
ONNX = bytes.fromhex("0808 3a03120167 4202100f")
"""A whole ONNX file: a version, a graph named g, and a version of its operators."""


def whole_weights(name: str) -> bytes:
    """A whole file of weights of that name; of a format that is not looked into, a byte."""
    whole = {"gguf": GGUF, "onnx": ONNX, "safetensors": tensors()}
    return whole.get(name.rpartition(".")[2].lower(), b"x")


def tensors(size: int = 4) -> bytes:
    """A whole safetensors file with one tensor of that many bytes."""
    header = json.dumps({"__metadata__": {"format": "pt"}, "t": {"data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop root, where the tests run as root: for root no folder is closed."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(UNPRIVILEGED_UID)
    try:
        yield
    finally:
        os.seteuid(0)
