import argparse
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.client.discovery import OperatorToken
from gpu_agent.cli.client.http import NODES, Api, Problem, add_api_options, get_all_pages, quote_id
from gpu_agent.cli.command import ExitCode, Failure
from tests.cli.conftest import Served
from tests.cli.stand_in import standing_in
from tests.programs import free_port


class Answering(BaseHTTPRequestHandler):
    """Echoes a request; `/refused` is a problem, `/locked` a 401."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked: dict[str, Any] = {"method": self.command, "path": self.path}
        asked["body"] = json.loads(self.rfile.read(length)) if length else None
        asked["authorization"] = self.headers.get_all("Authorization")
        status = {"/refused": 409, "/locked": 401}.get(self.path, 200)
        body = json.dumps({"detail": "no", "code": "OTHER", **asked}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
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


def test_a_refusal_is_a_failure_in_the_registrys_words(api: Api) -> None:
    with pytest.raises(Failure, match="no") as refused:
        api.get("/refused")
    assert refused.value.code is ExitCode.REFUSED


def test_a_refusal_may_be_an_answer(api: Api) -> None:
    answer = api.attempt("GET", "/refused", None)
    assert isinstance(answer, Problem)
    assert (answer.status, answer.sentence) == (409, "no")


def test_a_refusal_stays_one_line_whatever_it_holds() -> None:
    problem = Problem(409, {"code": "OTHER", "detail": "no\x1b[2J\nDone.\u2028"})
    assert problem.sentence == "no\\x1b[2J\\nDone.\\u2028"


def test_a_token_is_shown_with_every_request_and_none_without_one(api: Api) -> None:
    holder = Api(api.url, token=OperatorToken("gpuo_t", "a file"))
    assert holder.get("/v1/nodes")["authorization"] == ["Bearer gpuo_t"]
    assert holder.post("/v1/claims", {})["authorization"] == ["Bearer gpuo_t"]
    assert api.get("/v1/nodes")["authorization"] is None


def test_without_a_token_a_401_says_where_one_can_be_had(api: Api) -> None:
    with pytest.raises(Failure, match=r"--token-file FILE.*GPU_REGISTRY_TOKEN.*operator\.token") as refused:
        api.get("/locked")
    assert refused.value.code is ExitCode.REFUSED


def test_a_token_that_is_not_known_is_told_by_where_it_came_from_and_never_itself(api: Api) -> None:
    with pytest.raises(Failure, match="token from /a/file") as refused:
        Api(api.url, token=OperatorToken("gpuo_secret", "/a/file")).get("/locked")
    assert "gpuo_secret" not in str(refused.value)


def test_the_arguments_of_a_command_lead_to_its_registry_and_its_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("gpuo_t\n")
    parser = argparse.ArgumentParser()
    add_api_options(parser)
    words = ["--api", "http://127.0.0.1:1/", "--token-file", str(tmp_path / "token")]
    assert Api.of(parser.parse_args(words)).url == "http://127.0.0.1:1"
    with pytest.raises(Failure, match="not encrypted"):
        Api.of(parser.parse_args(["--api", "http://10.0.0.1:1", *words[2:]]))


def test_the_environment_names_a_registry_where_no_argument_does(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_api_options(parser)
    for variable, words, url in (
        (None, [], "http://127.0.0.1:8081"),
        ("", [], "http://127.0.0.1:8081"),
        ("http://127.0.0.1:9", [], "http://127.0.0.1:9"),
        ("http://127.0.0.1:9", ["--api", "http://127.0.0.1:7"], "http://127.0.0.1:7"),
    ):
        if variable is not None:
            monkeypatch.setenv("GPU_REGISTRY_API", variable)
        assert Api.of(parser.parse_args(words)).url == url
    with pytest.raises(Failure, match="'', of --api"):
        Api.of(parser.parse_args(["--api", ""]))


def test_an_answer_without_what_is_read_comes_from_no_registry(api: Api) -> None:
    with pytest.raises(Failure, match=r"is no gpu-agent registry.*has no nodes") as failed:
        api.get("/v1/nodes", NODES)
    assert failed.value.code is ExitCode.UNREACHABLE


FOREIGN = {
    "html": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    "html error": b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
    "json error": b"HTTP/1.1 404 Not\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "no type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "no json": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
    "deep json": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    + b"[" * 9999,
    "no object": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]",
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    "cut off problem": b"HTTP/1.1 409 No\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: 99\r\n\r\n{",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://[nowhere/\r\nContent-Length: 0\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_no_registry_is_exit_5_whatever_it_says(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(Failure, match=f"{url}.*registry") as failed:
            Api(url).get("/v1/nodes", NODES)
        thread.join(5)
    assert failed.value.code is ExitCode.UNREACHABLE
    assert ("no gpu-agent registry" in str(failed.value)) == bool(said)


def test_an_unreachable_registry_is_told_with_the_next_step() -> None:
    with pytest.raises(Failure, match=r"\(Connection refused\).*registry serve") as failed:
        Api(f"http://127.0.0.1:{free_port()}").get("/v1/nodes")
    assert failed.value.code is ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8081",
        "ftp://host",
        "http://",
        "http://:8081",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://a..b",
        "http://ho st",
        "http://host\n",
        "http://me:secret@host",
        "http://host/?a=b",
        "http://host/#a",
    ],
)
def test_an_address_that_is_no_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(Failure, match="http://127") as failed:
        Api(url)
    assert failed.value.code is ExitCode.CONFIGURATION


def test_a_proxy_of_the_environment_is_not_used(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    assert Api(api.url).get("/v1/nodes")["path"] == "/v1/nodes"


def test_an_id_cannot_leave_its_place_in_a_path() -> None:
    assert quote_id("../claims/x?y") == "..%2Fclaims%2Fx%3Fy"


def test_pages_come_together_as_one_answer() -> None:
    pages = {
        "GET /v1/things?colour=red+%26+blue": {"auth": "on", "things": [1, 2], "count": 2, "next": "b c"},
        "GET /v1/things?colour=red+%26+blue&after=b+c": {
            "auth": "on",
            "things": [3],
            "count": 1,
            "next": None,
        },
    }
    with standing_in(pages) as registry:
        whole = get_all_pages(
            Api(registry.api), "/v1/things", {"things": list}, key="things", query=[("colour", "red & blue")]
        )
    assert whole == {"auth": "on", "things": [1, 2, 3], "count": 3, "next": None}


def test_a_page_with_nothing_on_it_is_the_last_whatever_it_says() -> None:
    with standing_in(
        {"GET /t": {"t": [1], "next": "a"}, "GET /t?after=a": {"t": [], "next": "a"}}
    ) as registry:
        assert get_all_pages(Api(registry.api), "/t", {"t": list}, key="t")["t"] == [1]


def test_a_real_registrys_pages_are_all_of_its_nodes(served: Served) -> None:
    found = get_all_pages(Api(served.api), "/v1/nodes", NODES, key="nodes", query=[("limit", "1")])
    assert {node["node_id"] for node in found["nodes"]} == {served.able, served.new}
    assert (found["count"], found["next"]) == (2, None)
