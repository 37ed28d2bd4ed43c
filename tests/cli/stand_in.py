"""A real HTTP server whose answers a test chooses, for what no real registry can be made to answer."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cli.answers import document_of


@dataclass(frozen=True, slots=True)
class Refusal:
    """A problem document."""

    status: int
    code: str
    detail: str = "no"
    more: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Server-sent events as they go over the wire, then the end of the connection."""

    chunks: Iterable[str]


Said = Mapping[str, Any] | Refusal | Stream | None
Answer = Said | Callable[[], Said]
"""None is 204."""


@dataclass(slots=True)
class StandIn:
    """What it answers by method and path (with its query), and what it was asked."""

    answers: dict[str, Answer]
    api: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def bodies(self, words: str) -> list[Any]:
        """The bodies of the requests with this method and path."""
        return [body for request, body in self.asked if request == words]


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        words = f"{self.command} {self.path}"
        self.stand_in.asked.append((words, body))
        self.stand_in.headers.append({name.lower(): value for name, value in self.headers.items()})
        said = self.stand_in.answers.get(words, Refusal(404, "NOT_FOUND", f"no {words} here"))
        said = said() if callable(said) else said
        if isinstance(said, Mapping):
            said = document_of(words, said)
        if isinstance(said, Stream):
            self._stream(said)
        else:
            self._document(said)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names are http.server's

    def _document(self, said: Mapping[str, Any] | Refusal | None) -> None:
        status, kind, document = 200, "application/json", said
        if isinstance(said, Refusal):
            status, kind = said.status, "application/problem+json"
            problem = {"status": status, "title": "Refused", "code": said.code, "detail": said.detail}
            document = {**problem, **said.more}
        if document is None:
            self.send_response(204)
            self.end_headers()
            return
        written = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def _stream(self, said: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in said.chunks:
            self.wfile.write(chunk.encode())
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def standing_in(answers: Mapping[str, Answer]) -> Iterator[StandIn]:
    """Listen on 127.0.0.1 while the block lasts."""
    stand_in = StandIn(dict(answers))
    handler = type("Handler", (_Handler,), {"stand_in": stand_in})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        stand_in.api = f"http://127.0.0.1:{server.server_port}"
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
