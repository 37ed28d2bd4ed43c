import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.cli.client.discovery import OperatorToken, RegistryEndpoint
from gpu_agent.cli.client.http import Api, Refused, api_options, quote_id, request_options
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.wire.api import NodeList, TokenList
from tests.cli.conftest import Served
from tests.cli.given import given
from tests.cli.stand_in import Answer, Refusal, standing_in
from tests.programs import free_port
from tests.waiting import patience


class Answering(BaseHTTPRequestHandler):
    """Echoes a request; `/refused` is a problem, `/locked` a 401."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked: dict[str, Any] = {"method": self.command, "path": self.path}
        asked["body"] = json.loads(self.rfile.read(length)) if length else None
        asked["authorization"] = self.headers.get_all("Authorization")
        status = {"/refused": 409, "/locked": 401}.get(self.path, 200)
        body = json.dumps(
            {"status": status, "title": "No", "detail": "no", "code": "OTHER", **asked}
        ).encode()
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


def test_requests_arrive_as_made(api: Api) -> None:
    assert api.request("GET", "/v1/nodes")["path"] == "/v1/nodes"
    assert api.request("POST", "/v1/claims", {"job_id": "j"})["body"] == {"job_id": "j"}


def test_a_refusal_is_a_failure_in_the_registrys_words(api: Api) -> None:
    with pytest.raises(Failure, match="no") as refused:
        api.request("GET", "/refused")
    assert refused.value.code is ExitCode.REFUSED


def test_a_refusal_holds_its_problem(api: Api) -> None:
    with pytest.raises(Refused) as refused:
        api.request("GET", "/refused")
    assert (refused.value.status, refused.value.problem_code) == (409, "OTHER")
    assert refused.value.document["path"] == "/refused"


def test_a_refusal_stays_one_line_whatever_it_holds() -> None:
    refusal = Refusal(409, "OTHER", "no\x1b[2J\nDone.\u2028")
    with standing_in({"GET /v1/nodes": refusal}) as registry, pytest.raises(Refused) as refused:
        Api(registry.api).request("GET", "/v1/nodes")
    assert str(refused.value) == "no\\x1b[2J\\nDone.\\u2028"


def test_a_token_is_sent_with_every_request_and_none_without_one(api: Api) -> None:
    holder = Api(api.url, token=OperatorToken("gpuo_t", "a file"))
    assert holder.request("GET", "/v1/nodes")["authorization"] == ["Bearer gpuo_t"]
    assert holder.request("POST", "/v1/claims", {})["authorization"] == ["Bearer gpuo_t"]
    assert api.request("GET", "/v1/nodes")["authorization"] is None


def test_without_a_token_a_401_says_where_one_can_be_had(api: Api) -> None:
    with pytest.raises(Failure, match=r"--token-file FILE.*GPU_REGISTRY_TOKEN.*operator\.token") as refused:
        api.request("GET", "/locked")
    assert refused.value.code is ExitCode.REFUSED


def test_where_the_token_of_this_machines_registry_has_gone_the_way_in_is_named(
    api: Api, tmp_path: Path
) -> None:
    here = RegistryEndpoint(api.url, tmp_path)
    with pytest.raises(
        Failure, match=r"operator\.token is not there any more.*\*Locked out\* under \*Operate a fleet"
    ):
        Api(api.url, lost_token=here.missing_token_file).request("GET", "/locked")
    (tmp_path / "operator.token").touch()
    assert here.missing_token_file is None
    assert RegistryEndpoint(api.url).missing_token_file is None


def test_an_unknown_token_is_named_by_its_source_and_never_shown(api: Api) -> None:
    with pytest.raises(Failure, match="token from /a/file") as refused:
        Api(api.url, token=OperatorToken("gpuo_secret", "/a/file")).request("GET", "/locked")
    assert "gpuo_secret" not in str(refused.value)
    assert "`gpu-agent registry token create --operator ROLE`" in str(refused.value)


def test_where_a_token_that_was_found_here_is_unknown_the_other_state_directory_is_asked_for(
    api: Api,
) -> None:
    found = OperatorToken("gpuo_t", "/default/operator.token", written_by=os.geteuid())
    words = r"the token in /default/operator\.token.*another.*--token-file.*GPU_REGISTRY_STATE_DIR"
    with pytest.raises(Failure, match=words):
        Api(api.url, token=found).request("GET", "/locked")


def test_the_arguments_of_a_command_lead_to_its_registry_and_its_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("gpuo_t\n")
    words = ["--server", "http://127.0.0.1:1/", "--token-file", str(tmp_path / "token")]
    assert Api.of(given(api_options(), *words)).url == "http://127.0.0.1:1"
    with pytest.raises(Failure, match="not encrypted"):
        Api.of(given(api_options(), "--server", "http://10.0.0.1:1", *words[2:]))


def test_the_environment_names_a_registry_where_no_argument_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, words, url in (
        (None, [], "http://127.0.0.1:8081"),
        ("", [], "http://127.0.0.1:8081"),
        ("http://127.0.0.1:9", [], "http://127.0.0.1:9"),
        ("http://127.0.0.1:9", ["--server", "http://127.0.0.1:7"], "http://127.0.0.1:7"),
    ):
        if variable is not None:
            monkeypatch.setenv("GPU_REGISTRY_SERVER", variable)
        assert Api.of(given(api_options(), *words)).url == url
    with pytest.raises(Failure, match="'', of --server"):
        Api.of(given(api_options(), "--server", ""))


def test_an_answer_without_what_is_read_comes_from_no_registry(api: Api) -> None:
    with pytest.raises(Failure, match=r"is no gpu-agent registry.*auth: Field required") as failed:
        api.get("/v1/nodes", NodeList)
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
            Api(url).get("/v1/nodes", NodeList)
        thread.join(patience(5))
    assert failed.value.code is ExitCode.UNREACHABLE
    assert ("no gpu-agent registry" in str(failed.value)) == bool(said)


def test_an_unreachable_registry_is_reported_with_the_next_step() -> None:
    with pytest.raises(Failure, match=r"\(Connection refused\).*registry serve") as failed:
        Api(f"http://127.0.0.1:{free_port()}").request("GET", "/v1/nodes")
    assert failed.value.code is ExitCode.UNREACHABLE


def test_a_name_that_cannot_be_looked_up_is_to_be_checked() -> None:
    with pytest.raises(Failure, match=r"registry\.invalid.* cannot be looked up: check it") as failed:
        Api("http://registry.invalid:8081").request("GET", "/v1/nodes")
    assert failed.value.code is ExitCode.UNREACHABLE
    assert "registry serve" not in str(failed.value)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_the_port_for_nodes_is_told_from_a_registry_that_does_not_run(served: Served, method: str) -> None:
    url = served.registry.node_url.replace("ws://", "http://").removesuffix("/ws/node")
    with pytest.raises(Failure, match=r"for nodes|nodes are served") as failed:
        Api(url).request(method, "/v1/nodes", {} if method == "POST" else None)
    assert "name the operators' port, 8081 by default, with --server URL" in str(failed.value)
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
    assert Api(api.url).request("GET", "/v1/nodes")["path"] == "/v1/nodes"


def test_an_id_cannot_leave_its_part_of_a_path() -> None:
    assert quote_id("../claims/x?y") == "..%2Fclaims%2Fx%3Fy"


def test_pages_come_together_as_one_answer() -> None:
    first = "GET /v1/nodes?label=red+%26+blue"
    pages: dict[str, Answer] = {
        first: {"nodes": [{"node_id": "a"}, {"node_id": "b c"}], "count": 2, "next": "b c"},
        f"{first}&after=b+c": {"nodes": [{"node_id": "d"}], "count": 1, "next": None},
    }
    with standing_in(pages) as registry:
        query = [("label", "red & blue")]
        whole = Api(registry.api).get_pages("/v1/nodes", NodeList, members="nodes", query=query)
    assert [node.node_id for node in whole.model.nodes] == ["a", "b c", "d"]
    assert (whole.model.count, whole.model.next, whole.document["count"]) == (3, None, 3)


def test_an_empty_page_is_the_last_whatever_it_says() -> None:
    pages: dict[str, Answer] = {
        "GET /v1/tokens": {"tokens": [{"token_id": "a"}], "next": "a"},
        "GET /v1/tokens?after=a": {"tokens": [], "next": "a"},
    }
    with standing_in(pages) as registry:
        whole = Api(registry.api).get_pages("/v1/tokens", TokenList, members="tokens")
    assert [token.token_id for token in whole.model.tokens] == ["a"]


def test_a_real_registrys_pages_are_all_of_its_nodes(served: Served) -> None:
    found = Api(served.api).get_pages("/v1/nodes", NodeList, members="nodes", query=[("limit", "1")]).model
    assert {node.node_id for node in found.nodes} == {served.able, served.new}
    assert (found.count, found.next) == (2, None)


def test_a_command_that_uses_the_api_can_say_where_and_in_which_form() -> None:
    options = request_options(json_is="the answer")
    asked = given(options, "--json", "--server", "http://h")
    assert (asked.json, asked.server) == (True, "http://h")
    assert getattr(options[0], "help", "") == "print the answer"
