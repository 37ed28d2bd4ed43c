"""The operator API as commands use it: JSON over HTTP, with failures told to a person.

Uses no proxy: an operator API is named by its own address.
"""

import argparse
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_agent.cli.outcome import ExitCode, Failure

DEFAULT_API = "http://127.0.0.1:8081"
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Problem:
    """The registry's refusal of a request: its HTTP status and its problem document."""

    status: int
    document: Mapping[str, Any]

    @property
    def sentence(self) -> str:
        """What the registry says a person should know."""
        return str(self.document.get("detail") or self.document.get("title") or f"HTTP {self.status}")


class Api:
    """One registry's operator API."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise Failure(
                f"--api {url!r} is not a URL; write it like {DEFAULT_API}", code=ExitCode.CONFIGURATION
            )
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> dict[str, Any]:
        """Read a resource; raises `Failure` when refused or unreachable."""
        return self._granted("GET", path, None)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Ask for something; raises `Failure` when refused or unreachable."""
        return self._granted("POST", path, body)

    def delete(self, path: str) -> dict[str, Any]:
        """Give something back; raises `Failure` when refused or unreachable."""
        return self._granted("DELETE", path, None)

    def attempt(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, Any] | Problem:
        """Make a request whose refusal is an answer too; raises `Failure` only when unreachable."""
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked when the URL was given
            self.url + path, method=method, data=None if body is None else json.dumps(body).encode()
        )
        request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                return _document(response.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Problem(refusal.code, _document(refusal.read()))
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise Failure(
                f"no registry answers at {self.url} ({reason}). Is `gpu-agent registry serve` running? "
                "Name another one with --api URL.",
                code=ExitCode.UNREACHABLE,
            ) from None

    def _granted(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, Any]:
        answer = self.attempt(method, path, body)
        if isinstance(answer, Problem):
            raise Failure(answer.sentence, code=ExitCode.REFUSED)
        return answer


def add_api_option(parser: argparse.ArgumentParser) -> None:
    """Add `--api URL`."""
    parser.add_argument(
        "--api",
        metavar="URL",
        default=DEFAULT_API,
        help=f"the registry's operator API (default {DEFAULT_API})",
    )


def quoted(part: str) -> str:
    """Quote an id as one part of a path."""
    return urllib.parse.quote(part, safe="")


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body or b"{}")
    except ValueError:
        return {"detail": body[:200].decode(errors="replace")}
    return document if isinstance(document, dict) else {"detail": str(document)}
