"""One HTTP connection to the operator API, as a client that knows when no answer came."""

import http.client
import json
from dataclasses import dataclass
from typing import Any


class NoAnswerError(Exception):
    """The request may have been carried out or not: the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that came whole."""

    status: int
    document: Any

    @property
    def granted(self) -> bool:
        return self.status < 300


class Door:
    """A client of one registry; not shared between threads."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token

    def ask(self, method: str, path: str, body: object | None = None, *, token: str | None = None) -> Answer:
        """Ask once; raises `NoAnswerError` when the connection ended first."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self._token}"}
        try:
            connection.request(
                method,
                path,
                body=None if body is None and method in ("GET", "DELETE") else json.dumps(body or {}),
                headers=headers,
            )
            response = connection.getresponse()
            body = response.read()
            return Answer(response.status, json.loads(body) if body else None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswerError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
