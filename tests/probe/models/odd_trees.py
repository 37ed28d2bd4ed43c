"""Odd trees of folders, made from a seed."""

import json
import os
import random
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.probe.models.files import MAX_DEPTH
from tests.probe.models.caches import GGUF, ONNX, revision, tensors
from tests.waiting import patience

SECRET = "stored-elsewhere"
"""Part of what lies outside the root, in the layouts that are searched for: nothing of it may be found."""
MARK = "no-name-of-a-model"
"""Part of every path of a tree: no report may hold it."""
CHANGE_SECONDS = 0.0005
"""How often the writer changes something."""
FOLDERS = ("blobs", "refs", "snapshots", "manifests", "registry.ollama.ai", "library", "llama3", "1", "a")
REPOSITORIES = ("models--a--b", "models--c", "models----", "models--a--\udcff", "datasets--a--b")
FILES = (
    *("main", revision(1), revision(2), "x.incomplete", "x.y.incomplete", "8b", "model.json", "config.json"),
    *(
        "config.pbtxt",
        "README.md",
        "modules.json",
        "m.gguf",
        "m.gguf.part",
        "n-00001-of-00002.gguf",
        "mmproj.gguf",
        "model.safetensors",
        "m.onnx",
    ),
    *("model-00001-of-00002.safetensors", "model.safetensors.index.json", "m.plan", "sha256-" + "0" * 64),
)
ODD = (
    "\udcff\udcfe",
    "new\nline",
    " ",
    "…",
    "\x1b[31m",
    "a" * 255,
    ".hidden",
    "-rf",
    "%s",
    "é",
    "CON",
    "\u202e",
)
ONNX_ELSEWHERE = (
    bytes.fromhex("0808 3a1a 2a18 0801 1001 6a10 0a08 6c6f636174696f6e 1204 4e414d45 7001") + ONNX[-4:]
)
"""An ONNX file whose one number is at the start of the file NAME."""
TEXTS = (
    *(
        b"",
        b"{",
        b"[" * 9000,
        b"null",
        b"\xff\xfe",
        b"GGUF",
        b"GGUF" + b"\xff" * 40,
        tensors(),
        tensors()[:9],
        GGUF,
        GGUF[:-1],
        GGUF[:8] + b"\1" + bytes(7) + b"\1" + bytes(7) + b"\7" + bytes(7) + b"general",
        GGUF[:16] + b"\1" + bytes(7) + b"\1" + bytes(7) + b"a\x09\0\0\0\x08\0\0\0" + b"\xff" * 7 + b"\0",
        ONNX,
        ONNX[:-2],
    ),
    *(ONNX_ELSEWHERE.replace(b"NAME", name) for name in (b"/etc", b"../a", b"a/..", b"m.on", b"1\0\xff/")),
    b"version https://git-lfs.github.com/spec/v1\n",
    b"<!DOCTYPE html>",
    *(b"---\npipeline_tag: \xff\n---", revision(1).encode(), revision(3).encode(), b"../../..", b"x" * 5000),
    json.dumps({"model_id": "m", "version": 7, "kind": []}).encode(),
    json.dumps({"model_id": "x" * 2000}).encode(),
    json.dumps({"model_id": "\ud800"}).encode(),
    json.dumps({"architectures": [1, None, "LlamaForCausalLM"], "model_type": {}}).encode(),
    json.dumps({"weight_map": {"a": "m.onnx", "b": None}}).encode(),
    json.dumps(
        {
            "config": {"digest": "sha256:" + "0" * 64, "size": 0},
            "layers": [{"digest": "sha256:" + "1" * 64, "size": 10**30}],
        }
    ).encode(),
)


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree on a disk, and the dice that made it."""

    root: Path
    dice: random.Random

    def grow(self, folder: str, depth: int = 0) -> None:
        """Fill a folder; half of the names are such as caches hold."""
        for _ in range(self.dice.randint(1, 6)):
            pool = self.dice.choice((FOLDERS, FILES, FILES, REPOSITORIES if depth == 0 else FOLDERS, ODD))
            with suppress(OSError):
                self.plant(f"{folder}/{self.dice.choice(pool)}", depth)

    def plant(self, path: str, depth: int) -> None:
        """Make one thing of a kind that the dice choose."""
        roll = self.dice.random()
        if roll < 0.5 - 0.08 * depth:
            os.mkdir(path)  # noqa: PTH102  names that are no text
            self.grow(path, depth + 1)
        elif roll < 0.7:
            write(path, self.dice.choice(TEXTS))
        elif roll < 0.9:
            os.symlink(self.target(), path)  # noqa: PTH211  the same
        else:
            self.plant_oddity(path)

    def plant_oddity(self, path: str) -> None:
        """A pipe, a socket, a terabyte of nothing, or something closed."""
        match self.dice.randrange(5):
            case 0:
                os.mkfifo(path)
            case 1:
                os.mknod(path, stat.S_IFSOCK | 0o600)
            case 2:
                write(path, b"")
                resize(path, 1 << self.dice.randint(10, 43))
            case 3:
                os.mkdir(path, 0)  # noqa: PTH102  the same
            case _:
                write(path, b"", mode=0)

    def target(self) -> str:
        """Where a link leads: about, out, round, or nowhere."""
        name = self.dice.choice(FILES + FOLDERS)
        about = (name, f"../{name}", f"../../blobs/{name}", f"{self.root}/blobs/{name}", "..", ".")
        outside = f"{self.root.parent}/outside{self.dice.choice(('', '/a', '/blobs', '/a/a', '/model.json'))}"
        beyond = ("/", "/dev/zero", "/proc/self/fd/0", "x" * 300, outside, outside)
        return self.dice.choice(about + beyond)

    def disturb(self, stop: threading.Event) -> None:
        """Change things until stopped."""
        while not stop.wait(CHANGE_SECONDS):
            self.change_somewhere()

    def change_somewhere(self) -> None:
        """One change in one of the folders; or none, where it is not possible there."""
        folder, folders, files = self.dice.choice(list(os.walk(self.root)) or [(str(self.root), [], [])])
        with suppress(OSError):
            self.change(folder, [f"{folder}/{name}" for name in (*folders, *files)])

    def change(self, folder: str, paths: Sequence[str]) -> None:
        """One change."""
        match self.dice.randrange(4):
            case 0 if paths:
                os.unlink(self.dice.choice(paths))  # noqa: PTH108  the same
            case 1 if paths:
                os.rename(self.dice.choice(paths), f"{folder}/{self.dice.choice(FILES)}")  # noqa: PTH104
            case 2 if paths:
                resize(self.dice.choice(paths), self.dice.choice((0, 3, 1 << 40)))
            case _:
                self.plant(f"{folder}/{self.dice.choice(FILES + FOLDERS)}", MAX_DEPTH)


def hide(folder: str, depth: int) -> None:
    """Lay what looks like models of every kind outside the root."""
    os.mkdir(folder)  # noqa: PTH102  as the rest
    statement = json.dumps({"model_id": SECRET, "digest": SECRET}).encode()
    for name in ("model.json", f"{SECRET}.gguf", f"models--{SECRET}", SECRET):
        write(f"{folder}/{name}", statement)
    for name in ("blobs", "a") if depth < 2 else ():
        hide(f"{folder}/{name}", depth + 1)


def write(path: str, content: bytes, *, mode: int = 0o666) -> None:
    """Make a new file; what is there already, links and pipes above all, is left alone."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def resize(path: str, size: int) -> None:
    """Cut a file, or make it long without taking room; never what a link leads to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


@contextmanager
def writer(tree: Tree) -> Iterator[None]:
    """A writer that changes the tree meanwhile."""
    stop = threading.Event()
    other = Tree(tree.root, random.Random(tree.dice.random()))
    thread = threading.Thread(target=other.disturb, args=(stop,), name="writer", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(patience(10))
