"""The registry's HTTP API as commands use it: JSON requests, TLS, and failures as sentences.

Uses no proxy and follows no redirect: an API is named by its own address, and a token goes nowhere else. An
answer counts only when it is the document that the API defines (`gpu_agent.wire.api`).
"""

import http.client
import json
import os
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Self

import click

from gpu_agent.cli.client.answers import Answer, Document, Model, parse_answer
from gpu_agent.cli.client.discovery import (
    DEFAULT_API,
    SERVER_VARIABLE,
    STATE_DIR_VARIABLE,
    VARIABLE,
    OperatorToken,
    RegistryEndpoint,
    check_url,
    find_endpoint,
    find_token,
    may_send,
    token_options,
)
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.declaration import option
from gpu_agent.cli.output.text import printable
from gpu_agent.runtime.tls.certificate import PinError
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, client_context
from gpu_agent.runtime.tls.errors import TlsTerms, explain_tls_error

TIMEOUT_SECONDS = 10.0
LARGEST_BYTES = 256 * 1024 * 1024
"""An answer may be so long: more than the list of any fleet needs; an endless answer is cut off."""
LONGEST_LINE_BYTES = 1024 * 1024
DOWNLOAD_SECONDS = 120.0
"""The registry writes a file before it sends the first piece."""
PIECE_BYTES = 1024 * 1024

_JSON, _PROBLEM, _EVENTS = "application/json", "application/problem+json", "text/event-stream"
_SUCCESS, _NO_CONTENT, _UNAUTHORIZED = range(200, 300), 204, 401
_BAD_REQUEST, _NOT_FOUND, _TEXT, _MOST_TEXT = 400, 404, "text/plain", 300
"""An encrypted port answers an unencrypted request so, and the port for nodes any path but theirs."""
_OF_NODES = b"Nodes connect at "
_OPERATORS_PORT = "name the operators' port, 8081 by default, with --server URL"
_TLS_TERMS = TlsTerms(
    authority="--tls-ca-file", pin=None, own="--tls-cert-file and --tls-key-file", plain="http://"
)
_TLS_OPTIONS = (
    (
        "--tls-ca-file",
        "GPU_REGISTRY_CA_FILE",
        "authority of an https:// registry (default: ${}, else the system's)",
    ),
    (
        "--tls-cert-file",
        "GPU_REGISTRY_CERT_FILE",
        "your certificate, if the registry requires one (default: ${})",
    ),
    ("--tls-key-file", "GPU_REGISTRY_KEY_FILE", "its key (default: ${}, else in the certificate's file)"),
)
"""Each option with its variable.

`GPU_REGISTRY_TLS_CERT_FILE` and `GPU_REGISTRY_TLS_KEY_FILE` are settings of the registry itself: a command
that read them would present the server's certificate.
"""

Query = Sequence[tuple[str, str]]


class Refused(Failure):
    """The registry refused a request: a sentence for a person, the problem document for the command."""

    def __init__(self, sentence: str, document: Document) -> None:
        super().__init__(sentence, code=ExitCode.REFUSED)
        self.document = document
        self.status = document["status"]
        """The HTTP status."""
        self.problem_code = document["code"]


def request_options(*, json_is: str) -> list[click.Parameter]:
    """Return `--json`, whose output is `json_is`, and the options that name the registry."""
    return [option("--json", help=f"print {json_is}", flag=True), *api_options()]


def api_options() -> list[click.Parameter]:
    """Return `--server URL`, and the options for its token and certificates."""
    return [
        option(
            "--server",
            metavar="URL",
            help=f"the registry's operator API (default: ${SERVER_VARIABLE}, else this machine's: "
            f"{DEFAULT_API})",
        ),
        *token_options(),
        *(
            option(name, metavar="FILE", type=Path, help=meaning.format(variable))
            for name, variable, meaning in _TLS_OPTIONS
        ),
    ]


def reason_option() -> click.Parameter:
    """Return `--reason TEXT` of what an operator does."""
    return option("--reason", metavar="TEXT", help="why, for people who read the events")


def without_none(**fields: object) -> dict[str, object]:
    """Return a request's fields; an option that was not given is None, and left to the registry."""
    return {name: value for name, value in fields.items() if value is not None}


def quote_id(part: str) -> str:
    """Quote an id as one part of a path."""
    return urllib.parse.quote(part, safe="")


class Api:
    """One registry's HTTP API; `token` is sent with every request."""

    def __init__(
        self,
        url: str,
        *,
        token: OperatorToken | None = None,
        context: ssl.SSLContext | None = None,
        lost_token: Path | None = None,
    ) -> None:
        """`lost_token`: the file of the token of this machine's registry, where it is not there any more."""
        self.url = check_url(url)
        self._token = token
        self._lost_token = lost_token
        self._opener = urllib.request.OpenerDirector()  # without a handler that judges the status
        self._opener.add_handler(urllib.request.HTTPHandler())
        if self.url.startswith("https://"):
            self._opener.add_handler(_TlsHandler(context or client_context(ca_file=None, own=None)))

    @classmethod
    def of(cls, arguments: Arguments) -> Self:
        """Return the API that a command's arguments name, with the token for it; raises `Failure`."""
        endpoint = find_endpoint(arguments)
        token = find_token(
            endpoint.url,
            token_file=arguments.token_file,
            insecure_plaintext=arguments.insecure_plaintext,
            state_dir=endpoint.state_dir,
        )
        return cls(
            endpoint.url,
            token=token,
            context=_tls_context(endpoint, arguments),
            lost_token=endpoint.missing_token_file,
        )

    def get(self, path: str, model: type[Model], *, query: Query = ()) -> Answer[Model]:
        """Read a resource; raises `Refused`, or `Failure` when unreachable or not of this model."""
        return self.call("GET", path if not query else f"{path}?{urllib.parse.urlencode(query)}", model)

    def get_pages(self, path: str, model: type[Model], *, members: str, query: Query = ()) -> Answer[Model]:
        """Read a list whole; raises as `get` does.

        The answer is the first page's, with the `members` of all pages. A page that is not the last names
        in `next` the id after which the following one begins.
        """
        answer = self.get(path, model, query=query)
        whole, following = answer.document, answer.document.get("next")
        if not following:
            return answer
        listed = [*_list_in(whole, members)]
        while following:
            page = self.get(path, model, query=[*query, ("after", str(following))]).document
            listed += _list_in(page, members)
            following = page.get("next") if page[members] else None
        whole |= {members: listed, "next": None, "count": len(listed)}
        return parse_answer(whole, model)

    def post(
        self,
        path: str,
        body: Mapping[str, object],
        model: type[Model],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Answer[Model]:
        """Request something; raises `Refused`, or `Failure` when unreachable or not of this model."""
        return self.call("POST", path, model, body=body, timeout_seconds=timeout_seconds)

    def delete(self, path: str, *, timeout_seconds: float = TIMEOUT_SECONDS, **query: str | None) -> None:
        """Delete something; raises `Refused`, or `Failure` when unreachable."""
        given = urllib.parse.urlencode(without_none(**query))
        whole = f"{path}?{given}" if given else path
        self.request("DELETE", whole, timeout_seconds=timeout_seconds)

    def call(
        self,
        method: str,
        path: str,
        model: type[Model],
        *,
        body: Mapping[str, object] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Answer[Model]:
        """Make a request whose answer is a document; raises as `get` does."""
        document = self.request(method, path, body, timeout_seconds=timeout_seconds)
        try:
            return parse_answer(document, model)
        except ValueError as error:
            self._disown(f"its answer to {method} {path} is not a registry's: {error}")

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Document:
        """Make any request; raises `Refused`, or `Failure` when no registry answers."""
        with self._open(self._request(method, path, body), timeout_seconds=timeout_seconds) as answer:
            if answer.status == _NO_CONTENT:
                return {}
            self._raise_refusal(answer)
            return self._document(answer, _JSON)

    @contextmanager
    def stream(self, path: str, *, last_id: str | None, silence_seconds: float) -> Iterator[Iterator[bytes]]:
        """Open an event stream and yield its lines; raises `Refused`, or `Failure` when it breaks."""
        request = self._request("GET", path, None)
        request.add_header("Accept", _EVENTS)
        if last_id is not None:
            request.add_header("Last-Event-ID", last_id)
        with self._open(request, timeout_seconds=silence_seconds) as answer:
            self._raise_refusal(answer)
            self._check_type(answer, _EVENTS, "its event stream")
            yield iter(lambda: answer.readline(LONGEST_LINE_BYTES), b"")

    @contextmanager
    def download(self, path: str, media_type: str) -> Iterator[Iterator[bytes]]:
        """Request a file and yield its pieces; raises `Refused`, or `Failure` when it breaks off."""
        with self._open(self._request("POST", path, {}), timeout_seconds=DOWNLOAD_SECONDS) as answer:
            self._raise_refusal(answer)
            self._check_type(answer, media_type, "its file")
            yield iter(lambda: answer.read(PIECE_BYTES), b"")
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)

    def _request(self, method: str, path: str, body: Mapping[str, object] | None) -> urllib.request.Request:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked when the URL was given
            self.url + path, method=method, data=None if body is None else json.dumps(body).encode()
        )
        request.add_header("Content-Type", _JSON)
        if self._token is not None and may_send(self._token, self.url):
            request.add_header("Authorization", f"Bearer {self._token.text}")
        return request

    @contextmanager
    def _open(
        self, request: urllib.request.Request, *, timeout_seconds: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Yield any answer; raises `Failure`, also for what fails while the answer is read."""
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                yield answer
        except OSError as error:  # URLError is one, and so is a connection that ends without an answer
            of_tls = _tls_fault(error, self.url, urllib.parse.urlsplit(self.url).hostname or "")
            if of_tls is not None:
                raise Failure(of_tls, code=ExitCode.UNREACHABLE) from None
            raise Failure(
                f"no registry answers at {self.url} ({_cause(error)}). {_next_step(error)}",
                code=ExitCode.UNREACHABLE,
            ) from None
        except (http.client.HTTPException, ValueError) as error:
            self._disown(f"{type(error).__name__}: {error}")

    def _raise_refusal(self, answer: http.client.HTTPResponse) -> None:
        if answer.status in _SUCCESS:
            return
        self._check_port(answer)
        from gpu_agent.wire.api import Problem

        what = f"HTTP {answer.status}"
        document = self._document(answer, _PROBLEM, what=what)
        try:
            problem = parse_answer(document, Problem).model
        except ValueError:
            self._disown(f"{what} without a problem document")
        words = printable(problem.detail or problem.title)  # one line: none may look like one of ours
        raise Refused(self._unauthorized() if problem.status == _UNAUTHORIZED else words, document)

    def _unauthorized(self) -> str:
        """Say where a token that was refused came from, or where to get one."""
        if self._token is not None and self._token.written_by is not None:
            return (
                f"the registry at {self.url} does not know the token in {self._token.source}, which another "
                "registry of this machine wrote: name operator.token of its own state directory with "
                f"--token-file FILE, or that directory in {STATE_DIR_VARIABLE}"
            )
        if self._token is not None:
            return (
                f"the registry at {self.url} does not know the token from {self._token.source}, or no "
                "longer: ask its admin for a new one (`gpu-agent registry token create --operator ROLE`)"
            )
        if self._lost_token is not None:
            return (
                f"the registry at {self.url} requires an operator token, and {self._lost_token} is not there "
                "any more: name another admin's with --token-file FILE. The registry writes no new one while "
                "an admin's is valid: see *Locked out* under *Operate a fleet* in the documentation"
            )
        return (
            f"the registry at {self.url} requires an operator token: name a file that holds one with "
            f"--token-file FILE, or set {VARIABLE}. On its own machine the registry has written one to "
            "operator.token in its state directory, for the user who runs it: set "
            f"{STATE_DIR_VARIABLE} if that is not the default directory"
        )

    def _document(
        self, answer: http.client.HTTPResponse, media_type: str, *, what: str = "its answer"
    ) -> Document:
        """Return an answer's JSON object; an answer of another type comes from another program."""
        self._check_type(answer, media_type, what)
        try:
            document = json.loads(answer.read(LARGEST_BYTES))
        except (ValueError, RecursionError):
            self._disown(f"{what} is no JSON")
        if not isinstance(document, dict):
            self._disown(f"{what} is no JSON object")
        return document

    def _check_port(self, answer: http.client.HTTPResponse) -> None:
        """Raise `Failure` where a registry's port answers that takes no such request."""
        if answer.status not in (_BAD_REQUEST, _NOT_FOUND) or answer.headers.get_content_type() != _TEXT:
            return
        said = answer.read(_MOST_TEXT)
        if answer.status == _NOT_FOUND and said.startswith(_OF_NODES):
            raise Failure(
                f"nodes are served at {self.url}, not operators: {_OPERATORS_PORT}", code=ExitCode.UNREACHABLE
            )
        if answer.status == _BAD_REQUEST and self.url.startswith("http://") and b"https" in said:
            raise Failure(
                f"{self.url} is encrypted: name it with --server {self.url.replace('http', 'https', 1)}, "
                "and --tls-ca-file FILE if none of this machine's authorities signed its certificate",
                code=ExitCode.UNREACHABLE,
            )

    def _check_type(self, answer: http.client.HTTPResponse, media_type: str, what: str) -> None:
        found = answer.headers.get_content_type()
        if found != media_type:
            self._disown(f"{what} is {found}, not {media_type}")

    def _disown(self, why: str) -> NoReturn:
        raise Failure(
            f"what answers at {self.url} is no gpu-agent registry ({why}). "
            "Name the operators' address of one with --server URL.",
            code=ExitCode.UNREACHABLE,
        ) from None


class _TlsHandler(urllib.request.HTTPSHandler):
    """Opens encrypted connections with one context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._tls_context = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Make a request over an encrypted connection."""
        return self.do_open(_TlsConnection, req, context=self._tls_context)


class _TlsConnection(http.client.HTTPSConnection):
    """A connection whose peer may close it with a TLS alert, as one that requires a certificate does."""

    def send(self, data: Any) -> None:  # noqa: ANN401 - the library's own
        """Send; where that fails, raise the peer's TLS alert."""
        if self.sock is None:
            self.connect()
        try:
            super().send(data)
        except OSError:
            self.sock.recv(1)
            raise


def _tls_context(endpoint: RegistryEndpoint, arguments: Arguments) -> ssl.SSLContext | None:
    """Make the context of the handshake, None for `http://`; raises `Failure`.

    This machine's own registry is known by the pin of its key, any other by an authority.
    """
    if not endpoint.url.startswith("https://"):
        return None
    ca_file, cert_file, key_file = (
        _file_option(arguments, option, variable) for option, variable, _ in _TLS_OPTIONS
    )
    own = None if cert_file is None else OwnCertificate(cert_file, key_file)
    by_pin = endpoint.pin is not None and arguments.tls_ca_file is None
    try:
        return client_context(
            ca_file=None if by_pin else ca_file,
            own=own,
            pins=frozenset({endpoint.pin} if by_pin and endpoint.pin is not None else ()),
        )
    except TlsFileError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None


def _file_option(arguments: Arguments, option: str, variable: str) -> Path | None:
    given: Path | None = getattr(arguments, option.removeprefix("--").replace("-", "_"))
    value = os.environ.get(variable)
    return given if given is not None else (Path(value).expanduser() if value else None)


def _tls_fault(error: OSError, url: str, host: str) -> str | None:
    """Say what is wrong with the encryption at a URL, if that is what an error means."""
    found = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(found, PinError):
        return (
            f"what listens at {url} is not this machine's own registry, or no longer: its key has the pin "
            f"{found.seen}, and the registry wrote another one beside its operator token. Nothing was sent. "
            "If you mean that program, name it with --server URL and its authority with --tls-ca-file FILE"
        )
    if isinstance(found, ssl.SSLError):
        return f"nothing was sent to {url}: {explain_tls_error(found, host, _TLS_TERMS)}"
    return None


def _cause(error: OSError) -> str:
    """Return the system's words for an error, without its number."""
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)


def _next_step(error: OSError) -> str:
    """Say what to do where no registry answers."""
    if isinstance(getattr(error, "reason", error), socket.gaierror):
        return "That name cannot be looked up: check it, and /etc/resolv.conf on this machine."
    if isinstance(error, http.client.RemoteDisconnected):  # the port for nodes ends a POST so
        return f"If that is a registry's port for nodes, {_OPERATORS_PORT}."
    return "Is `gpu-agent registry serve` running? Name another operators' address with --server URL."


def _list_in(document: Document, name: str) -> list[object]:
    members = document[name]
    return members if isinstance(members, list) else []
