"""The registry's HTTP API as commands use it: JSON requests, TLS, and failures as sentences.

Uses no proxy and follows no redirect: an API is named by its own address, and a token goes nowhere else. An
answer counts only when it has the type and the shape of a registry's.
"""

import argparse
import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Self, TypeAlias

from gpu_agent.cli.client.discovery import (
    API_VARIABLE,
    DEFAULT_API,
    VARIABLE,
    Endpoint,
    OperatorToken,
    add_token_options,
    check_url,
    find_endpoint,
    find_token,
    may_send,
)
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.text import printable
from gpu_agent.runtime.tls.certificate import PinError
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, client_context
from gpu_agent.runtime.tls.errors import TlsTerms, explain_tls_error

Kind: TypeAlias = "type | UnionType | ListOf"
Shape: TypeAlias = Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of objects of one shape."""

    shape: Shape


ANYTHING: Shape = {}
_GPU: Shape = {"name": str}
_MODEL: Shape = {"model_id": str, "version": str}

EVENT: Shape = {"event": str, "at": float | int}

NODE: Shape = {
    "node_id": str,
    "status": str,
    "reason_code": str,
    "connected": bool,
    "gpus": ListOf(_GPU),
    "installed_models": ListOf(_MODEL),
    "in_flight_jobs": int,
    "max_concurrent_jobs": int,
    "last_heartbeat_age_seconds": float | int | None,
}
NODES: Shape = {"nodes": ListOf(NODE)}
NODE_DETAIL: Shape = {
    **NODE,
    "since": float | int,
    "reason": str,
    "checks": ListOf({"name": str, "ok": bool, "detail": str}),
    "events": ListOf(EVENT),
}
EXPLANATION: Shape = {
    "able": list,
    "excluded": ListOf({"node_id": str, "reason": str, "need": str, "have": str}),
    "counts": dict,
}
SELECTION: Shape = {"node_id": str}
CLAIM: Shape = {"node_id": str, "gpu_uuids": list, "expires_at": float | int}
EVENTS: Shape = {"events": ListOf(EVENT)}
OBJECTION: Shape = {"reason": str, "refuses": str, "need": str, "have": str, "clears_when": str}
WHY: Shape = {
    "node_id": str,
    "refuses_every_job": bool,
    "objections": ListOf(OBJECTION),
    "limits": ListOf(OBJECTION),
}
EXCLUSIONS: Shape = {
    "windows": ListOf({"window_start": float | int, "failed": int, "counts": dict, "examples": dict}),
}
NEW_TOKEN: Shape = {"token_id": str, "token": str, "expires_at": float | int | None}
TOKENS: Shape = {
    "tokens": ListOf({"token_id": str, "kind": str, "state": str, "created_at": float | int}),
}
THRESHOLDS: Shape = {
    "thresholds": ListOf({"name": str, "value": float | int | list, "unit": str, "meaning": str}),
}
CLAIMS: Shape = {"claims": ListOf({"job_id": str, "node_id": str, "expires_at": float | int})}


def missing_part(document: Mapping[str, Any], shape: Shape) -> str | None:
    """The first part of the shape that the document lacks, or has as something else."""
    for name, kind in shape.items():
        value = document.get(name, ...)
        if isinstance(kind, ListOf):
            lacks = _missing_in_list(value, kind.shape)
            if lacks is not None:
                return f"{name}{lacks}"
        elif not isinstance(value, kind):
            return name
    return None


def _missing_in_list(value: object, shape: Shape) -> str | None:
    if not isinstance(value, list):
        return ""
    for one in value:
        lacks = missing_part(one, shape) if isinstance(one, dict) else ""
        if lacks is not None:
            return f"[].{lacks}" if lacks else "[]"
    return None


_TLS_TERMS = TlsTerms(authority="--ca-file", pin=None, own="--cert-file and --key-file", plain="http://")
_TLS_OPTIONS = (
    ("--ca-file", "GPU_REGISTRY_CA_FILE", "vouches for an https:// registry (default: ${}, else the system)"),
    (
        "--cert-file",
        "GPU_REGISTRY_CERT_FILE",
        "your certificate, if the registry asks for one (default: ${})",
    ),
    ("--key-file", "GPU_REGISTRY_KEY_FILE", "its key (default: ${}, else in the certificate's file)"),
)
"""Each with the variable that stands for it."""


def add_client_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add `--ca-file`, `--cert-file` and `--key-file`."""
    for option, variable, meaning in _TLS_OPTIONS:
        parser.add_argument(option, metavar="FILE", type=Path, help=meaning.format(variable))


def tls_context(place: Endpoint, arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """Make what a handshake is set up with, None for `http://`; raises `Failure`."""
    if not place.url.startswith("https://"):
        return None
    ca_file, cert_file, key_file = (
        _file_option(arguments, option, variable) for option, variable, _ in _TLS_OPTIONS
    )
    own = None if cert_file is None else OwnCertificate(cert_file, key_file)
    by_pin = place.pin is not None and arguments.ca_file is None
    try:
        return client_context(
            ca_file=None if by_pin else ca_file,
            own=own,
            pins=frozenset({place.pin} if by_pin and place.pin is not None else ()),
        )
    except TlsFileError as error:
        raise Failure(str(error), code=ExitCode.CONFIGURATION) from None


class EncryptedHandler(urllib.request.HTTPSHandler):
    """Opens encrypted connections with one context."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._trusting = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Ask over an encrypted connection."""
        return self.do_open(_Connection, req, context=self._trusting)


class _Connection(http.client.HTTPSConnection):
    """One whose peer may say why it hangs up before all is sent, as one does that wants a certificate."""

    def send(self, data: Any) -> None:  # noqa: ANN401 - the library's own
        """Send; raises what TLS has to say where that fails."""
        if self.sock is None:
            self.connect()
        try:
            super().send(data)
        except OSError:
            self.sock.recv(1)
            raise


def tls_fault(error: OSError, url: str, host: str) -> str | None:
    """Say what is wrong with the encryption at a URL, if that is what an error means."""
    found = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(found, PinError):
        return (
            f"what listens at {url} is not this machine's own registry, or no longer: its key has the pin "
            f"{found.seen}, and the registry left another one beside its operator token. Nothing was sent. "
            "If that one is meant, name it with --api URL and who vouches for it with --ca-file FILE"
        )
    if isinstance(found, ssl.SSLError):
        return f"nothing was asked of {url}: {explain_tls_error(found, host, _TLS_TERMS)}"
    return None


def _file_option(arguments: argparse.Namespace, option: str, variable: str) -> Path | None:
    given: Path | None = getattr(arguments, option.removeprefix("--").replace("-", "_"))
    stated = os.environ.get(variable)
    return given if given is not None else (Path(stated).expanduser() if stated else None)


TIMEOUT_SECONDS = 10.0
LARGEST_BYTES = 256 * 1024 * 1024
"""More than the list of any fleet; an endless answer must end somewhere."""

LONGEST_LINE_BYTES = 1024 * 1024
DOWNLOAD_SECONDS = 120.0
"""A file is made before its first piece comes."""
PIECE_BYTES = 1024 * 1024

_JSON, _PROBLEM, _EVENTS = "application/json", "application/problem+json", "text/event-stream"
_GRANTED, _NO_CONTENT, _UNAUTHORIZED = range(200, 300), 204, 401
_BAD_REQUEST, _WORDS, _MOST_WORDS = 400, "text/plain", 300
"""How an encrypted port answers whoever asks it unencrypted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The registry's refusal of a request: its HTTP status and its problem document."""

    status: int
    document: Mapping[str, Any]

    @property
    def code(self) -> str:
        """The refusal for programs."""
        return str(self.document.get("code", ""))

    @property
    def sentence(self) -> str:
        """What the registry says a person should know."""
        told = self.document.get("detail") or self.document.get("title") or f"HTTP {self.status}"
        return printable(told)  # one sentence: no line of its own may look like one of ours


class Refused(Failure):
    """The registry said no: its problem for whoever can make more of it, its sentence for everybody."""

    def __init__(self, sentence: str, problem: Problem) -> None:
        super().__init__(sentence, code=ExitCode.REFUSED)
        self.problem = problem


class Api:
    """One registry's operator API; `token` is shown with every request."""

    def __init__(
        self, url: str, *, token: OperatorToken | None = None, context: ssl.SSLContext | None = None
    ) -> None:
        self.url = check_url(url)
        self._token = token
        self._opener = urllib.request.OpenerDirector()  # no handler judges a status: that is for us
        self._opener.add_handler(urllib.request.HTTPHandler())
        if self.url.startswith("https://"):
            self._opener.add_handler(EncryptedHandler(context or client_context(ca_file=None, own=None)))

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """The API that a command's arguments name, with the token they lead to; raises `Failure`."""
        place = find_endpoint(arguments)
        token = find_token(
            place.url,
            token_file=arguments.token_file,
            insecure_http=arguments.insecure_http,
            left_in=place.left_in,
        )
        return cls(place.url, token=token, context=tls_context(place, arguments))

    def get(self, path: str, shape: Shape = ANYTHING) -> dict[str, Any]:
        """Read a resource; raises `Refused`, or `Failure` when unreachable or not of this shape."""
        return self.ask("GET", path, shape=shape)

    def post(self, path: str, body: Mapping[str, object], shape: Shape = ANYTHING) -> dict[str, Any]:
        """Ask for something; raises `Refused`, or `Failure` when unreachable or not of this shape."""
        return self.ask("POST", path, body=body, shape=shape)

    def delete(self, path: str) -> None:
        """Give something back; raises `Refused`, or `Failure` when unreachable."""
        self.ask("DELETE", path)

    def ask(
        self, method: str, path: str, *, body: Mapping[str, object] | None = None, shape: Shape = ANYTHING
    ) -> dict[str, Any]:
        """Make any request; raises `Refused`, or `Failure` when unreachable or not of this shape."""
        answer = self.attempt(method, path, body)
        if isinstance(answer, Problem):
            raise Refused(self._sentence(answer), answer)
        lacks = missing_part(answer, shape)
        if lacks is not None:
            self._disown(f"its answer to {method} {path} has no {lacks} as a registry's has")
        return answer

    def attempt(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, Any] | Problem:
        """Make a request whose refusal is an answer too; raises `Failure` when no registry answers."""
        request = self._request(method, path, body)
        with self._answered(request, timeout_seconds=TIMEOUT_SECONDS) as answer:
            if answer.status == _NO_CONTENT:
                return {}
            return self._problem(answer) or self._document(answer, _JSON)

    @contextmanager
    def stream(self, path: str, *, last_id: str | None, silence_seconds: float) -> Iterator[Iterator[bytes]]:
        """Open a stream of events and hand out its lines; raises `Refused`, or `Failure` when it breaks."""
        request = self._request("GET", path, None)
        request.add_header("Accept", _EVENTS)
        if last_id is not None:
            request.add_header("Last-Event-ID", last_id)
        with self._answered(request, timeout_seconds=silence_seconds) as answer:
            problem = self._problem(answer)
            if problem is not None:
                raise Refused(self._sentence(problem), problem)
            self._check_kind(answer, _EVENTS, "its stream of events")
            yield iter(lambda: answer.readline(LONGEST_LINE_BYTES), b"")

    @contextmanager
    def download(self, path: str, kind: str) -> Iterator[Iterator[bytes]]:
        """Ask for a file and hand out its pieces; raises `Refused`, or `Failure` when it breaks off."""
        request = self._request("POST", path, {})
        with self._answered(request, timeout_seconds=DOWNLOAD_SECONDS) as answer:
            problem = self._problem(answer)
            if problem is not None:
                raise Refused(self._sentence(problem), problem)
            self._check_kind(answer, kind, "its file")
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
    def _answered(
        self, request: urllib.request.Request, *, timeout_seconds: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Hand out whatever answer there is; what goes wrong while it is read is told as well."""
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                yield answer
        except OSError as error:  # URLError is one, and so is a connection that ends without an answer
            of_tls = tls_fault(error, self.url, urllib.parse.urlsplit(self.url).hostname or "")
            if of_tls is not None:
                raise Failure(of_tls, code=ExitCode.UNREACHABLE) from None
            raise Failure(
                f"no registry answers at {self.url} ({_cause(error)}). "
                "Is `gpu-agent registry serve` running? Name another one with --api URL.",
                code=ExitCode.UNREACHABLE,
            ) from None
        except (http.client.HTTPException, ValueError) as error:
            self._disown(f"{type(error).__name__}: {error}")

    def _problem(self, answer: http.client.HTTPResponse) -> Problem | None:
        if answer.status in _GRANTED:
            return None
        self._check_encrypted(answer)
        return Problem(answer.status, self._document(answer, _PROBLEM, what=f"HTTP {answer.status}"))

    def _sentence(self, problem: Problem) -> str:
        """Say where a token that was refused came from, or where one can be had."""
        if problem.status != _UNAUTHORIZED:
            return problem.sentence
        if self._token is not None:
            return (
                f"the registry at {self.url} does not know the token from {self._token.source}, or no "
                "longer: ask its operator for a new one (`gpu-agent registry token create`)"
            )
        return (
            f"the registry at {self.url} asks for an operator token: name a file that holds one with "
            f"--token-file FILE, or set {VARIABLE}. On its own machine the registry has written one to "
            "operator.token in its state directory, for the user who runs it"
        )

    def _document(
        self, answer: http.client.HTTPResponse, kind: str, *, what: str = "its answer"
    ) -> dict[str, Any]:
        """An answer's JSON object; what is of another type comes from something else."""
        self._check_kind(answer, kind, what)
        try:
            document = json.loads(answer.read(LARGEST_BYTES))
        except (ValueError, RecursionError):
            self._disown(f"{what} is no JSON")
        if not isinstance(document, dict):
            self._disown(f"{what} is no JSON object")
        return document

    def _check_encrypted(self, answer: http.client.HTTPResponse) -> None:
        plain = self.url.startswith("http://") and answer.status == _BAD_REQUEST
        if plain and answer.headers.get_content_type() == _WORDS and b"https" in answer.read(_MOST_WORDS):
            raise Failure(
                f"{self.url} is encrypted: name it with --api {self.url.replace('http', 'https', 1)}, "
                "and --ca-file FILE if none of this machine's authorities vouches for its certificate",
                code=ExitCode.UNREACHABLE,
            )

    def _check_kind(self, answer: http.client.HTTPResponse, kind: str, what: str) -> None:
        told = answer.headers.get_content_type()
        if told != kind:
            self._disown(f"{what} is {told}, not {kind}")

    def _disown(self, why: str) -> NoReturn:
        raise Failure(
            f"what answers at {self.url} is no gpu-agent registry ({why}). "
            "Name the operators' address of one with --api URL.",
            code=ExitCode.UNREACHABLE,
        ) from None


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """Add `--api URL`, and how a token for it is found."""
    parser.add_argument(
        "--api",
        metavar="URL",
        help=f"the registry's operator API (default: ${API_VARIABLE}, else this machine's: {DEFAULT_API})",
    )
    add_token_options(parser)
    add_client_tls_options(parser)


def quote_id(part: str) -> str:
    """Quote an id as one part of a path."""
    return urllib.parse.quote(part, safe="")


def _cause(error: OSError) -> str:
    """The machine's own words for what went wrong, without its number."""
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)


Query = Sequence[tuple[str, str]]


def get_all_pages(api: Api, path: str, shape: Shape, *, key: str, query: Query = ()) -> dict[str, Any]:
    """Read a list whole; raises `Failure` as `Api.get` does.

    The answer is the first page's with all pages' members under `key`; a page that is not the last
    names in `next` what the following one comes `after`.
    """
    whole = api.get(_with_query(path, query), shape)
    following = whole.get("next")
    while following:
        page = api.get(_with_query(path, [*query, ("after", str(following))]), shape)
        whole[key] += page[key]
        following = page.get("next") if page[key] else None
    if "next" in whole:
        whole["next"] = None
    if "count" in whole:
        whole["count"] = len(whole[key])
    return whole


def _with_query(path: str, query: Query) -> str:
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path
