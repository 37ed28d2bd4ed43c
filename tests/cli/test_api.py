import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from gpu_agent.cli.api import Api, Problem, quoted
from gpu_agent.cli.outcome import ExitCode, Failure
from tests.programs import free_port


class Answering(BaseHTTPRequestHandler):
    """Echoes a request; `/refused` is a problem, `/garbage` no JSON."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked: dict[str, Any] = {"method": self.command, "path": self.path}
        asked["body"] = json.loads(self.rfile.read(length)) if length else None
        refused = self.path == "/refused"
        body = b"<html>" if self.path == "/garbage" else json.dumps({"detail": "no", **asked}).encode()
        self.send_response(409 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_DELETE = do_GET  # noqa: N815 - the names are http.server's

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Api(f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
        thread.join()


def test_requests_arrive_as_asked(api: Api) -> None:
    assert api.get("/v1/nodes")["path"] == "/v1/nodes"
    assert api.post("/v1/claims", {"job_id": "j"})["body"] == {"job_id": "j"}
    assert api.delete("/v1/claims/j")["method"] == "DELETE"


def test_a_refusal_is_a_failure_in_the_registrys_words(api: Api) -> None:
    with pytest.raises(Failure, match="no") as refused:
        api.get("/refused")
    assert refused.value.code is ExitCode.REFUSED


def test_a_refusal_may_be_an_answer(api: Api) -> None:
    answer = api.attempt("GET", "/refused", None)
    assert isinstance(answer, Problem)
    assert (answer.status, answer.sentence) == (409, "no")


def test_an_answer_that_is_no_json_is_shown_not_raised(api: Api) -> None:
    assert api.get("/garbage") == {"detail": "<html>"}


def test_an_unreachable_registry_is_told_with_the_next_step() -> None:
    with pytest.raises(Failure, match="registry serve") as failed:
        Api(f"http://127.0.0.1:{free_port()}").get("/v1/nodes")
    assert failed.value.code is ExitCode.UNREACHABLE


def test_an_address_that_is_no_url_is_refused_with_an_example() -> None:
    with pytest.raises(Failure, match="http://127") as failed:
        Api("localhost:8081")
    assert failed.value.code is ExitCode.CONFIGURATION


def test_a_proxy_of_the_environment_is_not_used(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    assert Api(api.url).get("/v1/nodes")["path"] == "/v1/nodes"


def test_an_id_cannot_leave_its_place_in_a_path() -> None:
    assert quoted("../claims/x?y") == "..%2Fclaims%2Fx%3Fy"
