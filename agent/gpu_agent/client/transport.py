"""Requests to one registry over HTTP: sent, answered by a model, and sent again while it restarts.

Uses no proxy, follows no redirect and reads no environment: a token goes to the address that was named.
"""

import asyncio
import ipaddress
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from gpu_agent.client import routes
from gpu_agent.client.errors import (
    INVALID_ANSWER,
    INVALID_REQUEST,
    UNREACHABLE,
    Busy,
    RegistryError,
    Unreachable,
    closed,
    refusal_of,
)
from gpu_agent.client.routes import AnswerT, Route
from gpu_agent.version import __version__
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_stream import EventStreamParser, SseMessage
from gpu_agent.wire.service_discovery import EndpointList

REQUEST_SECONDS = 10.0
"""How long one request may take, besides what it waits in the queue."""
FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 5.0
"""Delay before a request is sent again: twice as long each time, up to this."""
SILENCE_SECONDS = 60.0
"""A registry sends something on an event stream more often than that, if only a comment."""

_LOG = logging.getLogger("gpu_agent.client")
_NO_CONTENT = 204
_EVENT: TypeAdapter[RegistryEvent] = TypeAdapter(RegistryEvent)
_ENDPOINTS: TypeAdapter[EndpointList] = TypeAdapter(EndpointList)
_T = TypeVar("_T")


class Opened(BaseModel):
    """The event stream is open; what happened between two openings is in it if it was `resumed`."""

    resumed: bool


class Backoff:
    """How long to wait before a request is sent again."""

    def __init__(self) -> None:
        self._delay = FIRST_DELAY_SECONDS

    def next_delay(self, error: RegistryError) -> float:
        """Return the next delay, or the one that the registry asks for."""
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY_SECONDS)
        return max(delay, error.retry_after_seconds or 0.0)


class Transport:
    """The connections to one registry."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        ssl_context: ssl.SSLContext | None,
        insecure_plaintext: bool,
        retry_seconds: float,
    ) -> None:
        self.url = _checked_url(url, has_token=token is not None, insecure_plaintext=insecure_plaintext)
        self.retry_seconds = retry_seconds
        self._away = False
        """Whether a request waits for a registry that does not answer, which was logged."""
        headers = {"Content-Type": "application/json", "User-Agent": f"gpu-agent-client/{__version__}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {_checked_token(token)}"
        self._http = httpx.AsyncClient(
            headers=headers,
            verify=True if ssl_context is None else ssl_context,
            trust_env=False,
            timeout=REQUEST_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, route: Route[AnswerT], *, within_seconds: float | None = None) -> AnswerT:
        """Send a request, and again while the registry restarts or is busy; raises `RegistryError`."""
        until = time.monotonic() + (self.retry_seconds if within_seconds is None else within_seconds)
        backoff = Backoff()
        while True:
            try:
                return await self.send_once(route)
            except (Busy, Unreachable) as error:
                delay = backoff.next_delay(error)
                if not may_repeat(error) or time.monotonic() + delay > until:
                    raise
                await self.wait(error, delay)

    async def wait(self, error: RegistryError, seconds: float) -> None:
        """Wait before a request is sent again; logs once that no registry answers.

        A program without a log of its own prints that to stderr.
        """
        if isinstance(error, Unreachable) and not self._away:
            self._away = True
            _LOG.warning("waiting: %s", error)
        await asyncio.sleep(seconds)

    async def send_once(self, route: Route[AnswerT], *, timeout_seconds: float = REQUEST_SECONDS) -> AnswerT:
        """Send a request once; raises `RegistryError`."""
        self._check_open()
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await self._http.request(
                    route.method, self.url + route.path, content=route.body, timeout=timeout_seconds
                )
        except httpx.LocalProtocolError:
            raise _unsendable() from None
        except (httpx.TransportError, TimeoutError) as error:
            raise self._unreachable(error) from error
        self._note_answer()
        if not answer.is_success:
            raise _refusal(answer, answer.content)
        if answer.status_code == _NO_CONTENT:
            return route.answer()
        try:
            return route.answer.model_validate_json(answer.content)
        except ValidationError as error:
            raise RegistryError(
                f"the answer to {route.method} {route.path} cannot be read: upgrade gpu-agent here ({error})",
                code=INVALID_ANSWER,
                status=answer.status_code,
            ) from error

    async def follow(
        self, *, after: int | None = None, node_id: str | None = None
    ) -> AsyncGenerator[Opened | RegistryEvent, None]:
        """Yield every event, without end; after a break, those after the last one that was received.

        Raises as `messages` does.
        """
        reached = after

        def request() -> tuple[str, str | None]:
            return routes.events_path(after=reached, node_id=node_id), None if reached is None else str(
                reached
            )

        async with aclosing(self.messages(request)) as messages:
            async for message in messages:
                if message is None:
                    yield Opened(resumed=reached is not None)
                    continue
                if message.data:
                    yield _read(_EVENT, message.data)
                if message.id and message.id.isdecimal():
                    reached = int(message.id)

    async def watch_endpoints(self, path: str) -> AsyncGenerator[EndpointList, None]:
        """Yield a list of workers, and again after each change, without end; raises as `messages` does."""
        async with aclosing(self.messages(lambda: (path, None))) as messages:
            async for message in messages:
                if message is not None and message.data:
                    yield _read(_ENDPOINTS, message.data)

    async def messages(
        self, request: Callable[[], tuple[str, str | None]]
    ) -> AsyncGenerator[SseMessage | None, None]:
        """Yield the messages of a stream, opened again after each break; None says that it was opened.

        `request` returns its path, and the id of the last event that was received. A registry that never
        answered is waited for no longer than any request is. Raises `RegistryError`.
        """
        backoff = Backoff()
        until: float | None = time.monotonic() + self.retry_seconds
        while True:
            opened = False
            try:
                async with aclosing(self._read_stream(*request())) as stream:
                    async for message in stream:
                        opened, backoff, until = True, Backoff(), None
                        yield message
                broken: RegistryError = Unreachable("the stream ended", code=UNREACHABLE)
            except (Busy, Unreachable) as error:
                broken = error
            delay = backoff.next_delay(broken)
            if until is not None and time.monotonic() + delay > until:
                raise broken
            if opened:
                await asyncio.sleep(delay)
            else:
                await self.wait(broken, delay)

    async def _read_stream(self, path: str, last_id: str | None) -> AsyncGenerator[SseMessage | None, None]:
        timeout = httpx.Timeout(REQUEST_SECONDS, read=SILENCE_SECONDS)
        headers = {"Accept": "text/event-stream"} | ({} if last_id is None else {"Last-Event-ID": last_id})
        parser = EventStreamParser()
        self._check_open()
        try:
            async with self._http.stream("GET", self.url + path, headers=headers, timeout=timeout) as answer:
                self._note_answer()
                if not answer.is_success:
                    raise _refusal(answer, await answer.aread())
                yield None
                async for line in answer.aiter_lines():
                    message = parser.read_line(line)
                    if message is not None:
                        yield message
        except httpx.LocalProtocolError:
            raise _unsendable() from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _check_open(self) -> None:
        if self._http.is_closed:
            raise closed()

    def _note_answer(self) -> None:
        if self._away:
            self._away = False
            _LOG.warning("the registry answers again")

    def _unreachable(self, error: Exception) -> Unreachable:
        cause = str(error) or type(error).__name__
        return Unreachable(f"no registry answers at {self.url} ({cause}): is it running?", code=UNREACHABLE)


def may_repeat(error: RegistryError) -> bool:
    """Whether the same request may have another outcome soon."""
    return isinstance(error, Unreachable) or error.retry_after_seconds is not None


def _read(adapter: TypeAdapter[_T], data: str) -> _T:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise RegistryError(
            f"an event of this registry cannot be read: upgrade gpu-agent here ({error})", code=INVALID_ANSWER
        ) from error


def _refusal(answer: httpx.Response, content: bytes) -> RegistryError:
    return refusal_of(content, status=answer.status_code, retry_after=answer.headers.get("Retry-After"))


def _unsendable() -> RegistryError:
    """Report a request that breaks the protocol here; what HTTP says of it may quote the token."""
    return RegistryError("the request is no valid HTTP and was not sent: report this", code=INVALID_REQUEST)


def _checked_token(token: str) -> str:
    """Return the token without the line's end of its file; raises `ValueError`, which does not quote it."""
    token = token.strip()
    if not token or any(not "!" <= letter <= "~" for letter in token):
        raise ValueError(
            "the token is empty, or holds characters that no token has: it is one line that begins with gpuo_"
        )
    return token


def _checked_url(url: str, *, has_token: bool, insecure_plaintext: bool) -> str:
    """Return the address without a path; raises `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"{url!r} is no address of a registry: write it like https://registry:8081")
    if parts.scheme == "http" and has_token and not insecure_plaintext and not _is_loopback(parts.hostname):
        raise ValueError(
            f"{url} is not encrypted, so that others on the network can read the token: use https://, or "
            "insecure_plaintext=True in a network that you trust"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
