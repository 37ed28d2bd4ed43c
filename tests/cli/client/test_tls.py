"""Commands and a registry's encrypted port, over real sockets."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from pathlib import Path

import pytest

from gpu_agent.cli.client.discovery import SERVER_VARIABLE, STATE_DIR_VARIABLE, VARIABLE
from gpu_agent.cli.client.http import Api, api_options
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.runtime.state_dir import OPERATOR_TOKEN_FILE, Endpoint, write_endpoint_file
from gpu_agent.runtime.tls.certificate import pin_of, read_certificate_file
from gpu_agent.runtime.tls.contexts import OwnCertificate, server_context
from tests.authority import Authority, self_signed
from tests.cli.client.test_http import Answering
from tests.cli.given import given

TOKEN = "gpuo_00000000_s3cret"


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of this machine's registry, with its token; nothing of the true machine is read."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / OPERATOR_TOKEN_FILE).write_text(TOKEN)
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(folder))
    for name in (VARIABLE, SERVER_VARIABLE, "GPU_REGISTRY_CA_FILE", "GPU_REGISTRY_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


class Quiet(HTTPServer):
    def handle_error(self, *_: object) -> None:
        """A handshake that fails is what the test is about."""


@contextmanager
def serving(own: OwnCertificate, *, client_ca_file: Path | None = None) -> Iterator[int]:
    with Quiet(("127.0.0.1", 0), Answering) as server:
        context = server_context(own, client_ca_file=client_ca_file)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def api(*words: str) -> Api:
    return Api.of(given(api_options(), *words))


def refusal(*words: str) -> str:
    with pytest.raises(Failure) as refused:
        api(*words).request("GET", "/v1/nodes")
    assert TOKEN not in str(refused.value)
    assert refused.value.code in (ExitCode.UNREACHABLE, ExitCode.CONFIGURATION)
    return str(refused.value)


def test_this_machines_own_registry_is_known_by_the_key_whose_pin_it_left(
    tmp_path: Path, state_dir: Path
) -> None:
    own = self_signed(tmp_path, "registry.example")
    with serving(own) as port:
        write_endpoint_file(
            state_dir, Endpoint(f"https://127.0.0.1:{port}", pin_of(read_certificate_file(own.cert_file)))
        )
        assert api().request("GET", "/v1/nodes")["authorization"] == [f"Bearer {TOKEN}"]


def test_the_one_who_listens_in_its_place_with_another_key_is_sent_nothing(
    tmp_path: Path, state_dir: Path, authority: Authority
) -> None:
    pin = pin_of(read_certificate_file(self_signed(tmp_path).cert_file))
    with serving(authority.issue()) as port:
        write_endpoint_file(state_dir, Endpoint(f"https://127.0.0.1:{port}", pin))
        said = refusal()
    assert "is not this machine's own registry, or no longer" in said
    assert "Nothing was sent" in said


def test_a_registry_elsewhere_is_known_by_an_authority(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(authority.issue()) as port:
        url = f"https://localhost:{port}"
        assert "name that authority's certificate in --tls-ca-file" in refusal("--server", url)
        assert (
            api("--server", url, "--tls-ca-file", str(authority.file)).request("GET", "/v1/nodes")["path"]
            == "/v1/nodes"
        )
        monkeypatch.setenv("GPU_REGISTRY_CA_FILE", str(authority.file))
        assert api("--server", url).request("GET", "/v1/nodes")["path"] == "/v1/nodes"


def test_an_authority_that_is_named_counts_for_this_machines_own_registry_too(
    state_dir: Path, authority: Authority
) -> None:
    own = authority.issue()
    with serving(own) as port:
        write_endpoint_file(state_dir, Endpoint(f"https://127.0.0.1:{port}", "sha256//" + "A" * 43 + "="))
        assert api("--tls-ca-file", str(authority.file)).request("GET", "/v1/nodes")["path"] == "/v1/nodes"


def test_a_registry_that_asks_for_a_certificate_is_shown_one(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = authority.issue("me")
    with serving(authority.issue(), client_ca_file=authority.file) as port:
        words = ("--server", f"https://localhost:{port}", "--tls-ca-file", str(authority.file))
        for _ in range(5):
            assert "have one issued by the authority that it trusts" in refusal(*words)
        files = ("--tls-cert-file", str(mine.cert_file), "--tls-key-file", str(mine.key_file))
        assert api(*words, *files).request("GET", "/v1/nodes")["path"] == "/v1/nodes"
        monkeypatch.setenv("GPU_REGISTRY_CERT_FILE", str(mine.cert_file))
        monkeypatch.setenv("GPU_REGISTRY_KEY_FILE", str(mine.key_file))
        assert api(*words).request("GET", "/v1/nodes")["path"] == "/v1/nodes"


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    assert f"{absent} cannot be read" in refusal(
        "--server", "https://127.0.0.1:9", "--tls-ca-file", str(absent)
    )


def test_what_is_not_encrypted_needs_no_file(tmp_path: Path) -> None:
    assert "no registry answers" in refusal("--server", "http://127.0.0.1:9", "--tls-ca-file", str(tmp_path))


def test_without_more_the_systems_authorities_vouch(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with serving(authority.issue()) as port:
        assert Api(f"https://localhost:{port}").request("GET", "/v1/nodes")["path"] == "/v1/nodes"


def test_no_variable_makes_a_command_write_its_keys_down(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with serving(authority.issue()) as port:
        api("--server", f"https://localhost:{port}", "--tls-ca-file", str(authority.file)).request(
            "GET", "/v1/nodes"
        )
    assert not (tmp_path / "keys").exists()
