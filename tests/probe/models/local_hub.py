"""A hub on loopback, as much of one as the hub's own library needs to fill a cache."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.waiting import patience

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], revision=sys.argv[2], max_workers=1)
"""


class LocalHub:
    """Repositories with their commits; a file may be served by halves, so that a download stands still."""

    def __init__(self) -> None:
        self._commits: dict[tuple[str, str], str] = {}
        self._files: dict[tuple[str, str], Mapping[str, bytes]] = {}
        self.held: set[str] = set()
        """Names of files of which only the first half is sent until `release` is set."""
        self.halfway = threading.Event()
        self.release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="local hub", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repository: str, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        """Add a commit and let a ref name it."""
        digest = sha1(repr((repository, ref, sorted(files.items()))).encode())  # noqa: S324  as git does
        commit = digest.hexdigest()
        self._files[repository, commit] = files
        for name in (ref, commit):
            self._commits[repository, name] = commit
        return commit

    def download(
        self, cache: Path, repository: str, ref: str = "main", *, links: bool = True
    ) -> "subprocess.Popen[str]":
        """Have the hub's own library fetch a repository into a cache, in a process of its own."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(cache.parent),
            "HF_HUB_CACHE": str(cache),
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({} if links else {"HF_HUB_DISABLE_SYMLINKS": "1"}),
        }
        command = [sys.executable, "-c", DOWNLOAD, repository, ref]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def fetched(self, cache: Path, repository: str, ref: str = "main", *, links: bool = True) -> None:
        """The same, to its end."""
        with self.download(cache, repository, ref, links=links) as program:
            _, said = program.communicate(timeout=patience(60))
        assert program.returncode == 0, said

    def answer(self, path: str) -> tuple[dict[str, str], bytes, str] | None:
        """Headers, body and name of the answer to a path; `None` when there is no such file."""
        steps = [unquote(step) for step in urlsplit(path).path.strip("/").split("/")]
        if steps[:2] == ["api", "models"] and len(steps) >= 6:
            return self._told("/".join(steps[2:4]), steps[4], "/".join(steps[5:]))
        if len(steps) > 4 and steps[2] == "resolve":
            return self._file("/".join(steps[:2]), steps[3], "/".join(steps[4:]))
        return None

    def _told(self, repository: str, what: str, revision: str) -> tuple[dict[str, str], bytes, str] | None:
        commit = self._commits.get((repository, revision))
        if commit is None:
            return None
        files = self._files[repository, commit]
        listed: object = {
            "id": repository,
            "sha": commit,
            "siblings": [{"rfilename": name} for name in files],
        }
        if what == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in files.items()
            ]
        return {"Content-Type": "application/json"}, json.dumps(listed).encode(), what

    def _file(self, repository: str, revision: str, name: str) -> tuple[dict[str, str], bytes, str] | None:
        commit = self._commits.get((repository, revision))
        data = self._files[repository, commit].get(name) if commit else None
        if data is None or commit is None:
            return None
        return {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}, data, name


@contextmanager
def halfway(hub: LocalHub, cache: Path, repository: str, *, name: str) -> Iterator["subprocess.Popen[str]"]:
    """A download that stands still in the middle of a file, and is killed in the end if it still runs."""
    hub.held.add(name)
    with hub.download(cache, repository) as program:
        assert hub.halfway.wait(patience(30))
        try:
            yield program
        finally:
            program.kill()


def _etag(data: bytes) -> str:
    return sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        answer = self.hub.answer(self.path)
        if answer is None:
            self._head(404, {}, 0)
            return
        headers, data, name = answer
        began = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self._head(206 if began else 200, headers, len(data) - began)
        if body:
            self._send(data[began:], held=name in self.hub.held)

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, data: bytes, *, held: bool) -> None:
        if held:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.hub.halfway.set()
            self.hub.release.wait(patience(60))
            data = data[len(data) // 2 :]
        try:
            self.wfile.write(data)
        except OSError:
            return  # the client was killed
