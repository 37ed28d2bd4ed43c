"""The fleet page as an ASGI application: which page answers, its stream, its static files, its refusals."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_agent.registry.tokens import Role
from gpu_agent.server.http_headers import trace_id_of
from gpu_agent.server.metrics import RequestMetrics
from gpu_agent.server.service import RegistryService, caused_by
from gpu_agent.server.web import actions, events, jobs, node, nodes, overview
from gpu_agent.server.web.checks import PageChecks, log_call
from gpu_agent.server.web.live import LivePages, LiveView, Part, PartCache
from gpu_agent.server.web.rendering import render, static_file
from gpu_agent.server.web.session import session_token, signin_path
from gpu_agent.server.web.signin import show_signin, sign_in, sign_out
from gpu_agent.server.web.visit import (
    LEADS_NO_MORE,
    PAGE_HEADERS,
    PageError,
    PageRoute,
    Person,
    Visit,
    problem_page,
    see,
)

RETRY_SECONDS = 3
"""How soon a page that cannot be shown now asks again."""
STATIC = "/web/static/"

_MODULES = (overview, nodes, node, jobs, events, actions)
_FOR_GOOD = "public, max-age=31536000, immutable"
_PATHS = frozenset({"/", "/nodes", "/jobs", "/events", "/signin"})
_OF_SCRIPT = frozenset({"/web/stream", "/web/session"})
"""What the pages' script asks for."""
_BELOW = ("/nodes/", "/jobs/", "/web/")
_API = "/v1"
_ANY_PATH = "/{rest:path}"

_Handler = Callable[[Request], Awaitable[Response]]


def is_page(path: str) -> bool:
    """Whether a path belongs to the fleet page, and not to the API."""
    return path in _PATHS or path.startswith(_BELOW)


class FleetPages:
    """The fleet page of one API server."""

    def __init__(self, *, hosts: frozenset[str] | None, metrics: RequestMetrics) -> None:
        """Let requests name these hosts; None where they cannot be known."""
        self._checks = PageChecks(hosts)
        self._metrics = metrics
        self._registry: RegistryService | None = None
        self._cache = PartCache()
        self._live = LivePages(self._cache, _nothing)
        self._views: Mapping[str, Callable[[Visit], LiveView]] = {
            name: view for module in _MODULES for name, view in module.LIVE.items()
        }
        own = (
            PageRoute("/web/stream", self._stream),
            PageRoute("/web/session", self._confirm_session),
            PageRoute("/web/signout", sign_out, method="POST"),
        )
        unknown = PageRoute(_ANY_PATH, _refuse_path)
        pages = (*own, *(one for module in _MODULES for one in module.ROUTES), unknown)
        self._app = Starlette(
            routes=[
                Route("/signin", self._traced(self._show_signin, "/signin"), methods=["GET"]),
                Route("/signin", self._traced(self._sign_in, "/signin"), methods=["POST"]),
                Route(STATIC + "{name:path}", _show_static, methods=["GET"]),
                *(Route(one.path, self._handler(one), methods=[one.method]) for one in pages),
            ],
            exception_handlers={
                PageError: _on_page_error,
                HTTPException: _on_http,
                Exception: _on_internal_error,
            },
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def as_routes(self) -> list[Route]:
        """Return the routes by which another application leaves all paths of the fleet page to this one.

        The last takes what a browser asks for at a path that nothing else answers.
        """
        paths = (*sorted(_PATHS), *(f"{prefix}{{rest:path}}" for prefix in _BELOW))
        routes = [Route(path, self, include_in_schema=False) for path in paths]
        return [*routes, _BrowserRoute(_ANY_PATH, self, include_in_schema=False)]

    def attach(self, registry: RegistryService | None) -> None:
        """Show this registry from now on; None: none leads here. Ends all streams."""
        self._live.close()
        self._registry = registry
        self._cache = PartCache()
        self._live = LivePages(self._cache, _nothing if registry is None else registry.fleet_view.refresh)

    def stop(self) -> None:
        """End all streams now."""
        self._live.close()
        self._checks.stop()

    def _handler(self, page: PageRoute) -> _Handler:
        async def check_and_answer(request: Request) -> Response:
            return await self._answer(request, page)

        return self._traced(check_and_answer, page.path)

    def _traced(self, answer: _Handler, path: str) -> _Handler:
        """Answer within the trace that the request names, and measure it."""

        async def traced(request: Request) -> Response:
            began, status = time.monotonic(), HTTPStatus.INTERNAL_SERVER_ERROR.value
            try:
                self._checks.check_host(request)
                with caused_by(trace_id_of(request.headers.getlist)):
                    response = await answer(request)
                status = response.status_code
            except PageError as error:
                status = error.status.value
                raise
            finally:
                took = time.monotonic() - began
                self._metrics.observe(took, method=request.method, route=path, status=status)
            return response

        return traced

    async def _answer(self, request: Request, page: PageRoute) -> Response:
        """Check a request for a page, then let the page answer."""
        registry, posts = self._attached(), request.method == "POST"
        form = await self._checks.form(request) if posts else {}
        person = self._checks.person(request, registry)
        if person is None:
            return self._without_session(request)
        self._checks.check_role(request, person, page.needed)
        if posts:
            self._checks.check_csrf(form, person)
        self._checks.check_leads(request)
        await registry.fleet_view.refresh()
        visit = Visit(
            request=request,
            registry=registry,
            person=person,
            form=form,
            parts=self._cache,
            nav=_nav_view(registry),
        )
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        try:
            response = await page.answer(visit)
            status = response.status_code
        except PageError as error:
            status = error.status.value
            raise
        finally:
            if posts and page.needed is not Role.READ:
                log_call(request, person.token_id, person.name, status=status)
        return response

    def _without_session(self, request: Request) -> Response:
        if session_token(request) is not None:  # without any, a person has merely opened the page
            self._checks.log_unauthorized(request, "unknown session")
        if request.url.path in _OF_SCRIPT:  # it goes to the sign-in by itself
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers=PAGE_HEADERS)
        return see(signin_path(request))

    def _attached(self) -> RegistryService:
        if self._registry is None:
            raise LEADS_NO_MORE
        return self._registry

    async def _show_signin(self, request: Request) -> Response:
        return await show_signin(request, self._attached(), self._checks)

    async def _sign_in(self, request: Request) -> Response:
        return await sign_in(request, self._attached(), self._checks)

    async def _stream(self, visit: Visit) -> Response:
        """Send what changes on a page, as server-sent events without end."""
        view = self._views.get(visit.query.get("page", ""))
        if view is None:
            raise PageError(HTTPStatus.NOT_FOUND, "No such page", "Reload the page.")
        person = visit.person
        self._check_room(person)
        pieces = self._live.stream(
            _with_nav(view(visit), visit.nav),
            since=visit.request.headers.get("last-event-id") or visit.query.get("since", ""),
            mark=visit.query.get("order", ""),
            token_id=person.parent_id,
            is_valid=person.is_valid,
        )
        first = await anext(pieces)  # what cannot be shown is refused with a page, before the answer begins
        headers = {**PAGE_HEADERS, "X-Accel-Buffering": "no"}
        return StreamingResponse(_from(first, pieces), media_type="text/event-stream", headers=headers)

    async def _confirm_session(self, visit: Visit) -> Response:
        """Say that the session is valid and may have a stream: the script asks after its own broke."""
        self._check_room(visit.person)
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=PAGE_HEADERS)

    def _check_room(self, person: Person) -> None:
        if self._live.full or self._live.full_for(person.parent_id):
            raise PageError(
                HTTPStatus.TOO_MANY_REQUESTS, "Too many pages are open", "Close one, and reload this one."
            )


def with_problem_pages(app: ASGIApp, *, besides: frozenset[str]) -> ASGIApp:
    """Answer with a page where an instance refuses a browser with a problem document.

    A standby does so while no instance leads, and a leader whose lease has ended. At the paths `besides` also
    a browser gets the document.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] != "http" or path in besides or not (is_page(path) or _is_of_browser(scope)):
            await app(scope, receive, send)
            return
        replaced = False

        async def send_page(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                if kind.startswith(b"application/problem+json"):
                    replaced = True
                    error = _problem_of(message["status"])
                    await problem_page(error, retry_seconds=RETRY_SECONDS)(scope, receive, send)
            if not replaced:
                await send(message)

        await app(scope, receive, send_page)

    return answer


def _problem_of(status: int) -> PageError:
    if status == HTTPStatus.BAD_GATEWAY:
        return PageError(
            HTTPStatus.BAD_GATEWAY,
            "The registry's leader was lost before its answer",
            "What you sent may have been done: look before you send it again.",
        )
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return LEADS_NO_MORE
    return PageError(HTTPStatus(status), "The registry does not answer this", "Go back to the overview.")


def _nav_view(registry: RegistryService) -> LiveView:
    """Return what changes in the navigation."""

    def parts(_: Sequence[str]) -> Iterator[Part]:
        attention, waiting = registry.fleet_view.totals.attention, registry.waiting_jobs
        yield Part(
            "nav-nodes",
            attention,
            partial(_badge, "nav-nodes", attention, meaning="need attention", kind="bad"),
        )
        yield Part("nav-jobs", waiting, partial(_badge, "nav-jobs", waiting, meaning="waiting", kind=""))

    return LiveView("nav", "", parts)


def _with_nav(view: LiveView, nav: LiveView) -> LiveView:
    """Return a page's view together with that of the navigation."""

    def parts(rows: Sequence[str]) -> Iterable[Part]:
        yield from nav.parts(rows)
        yield from view.parts(rows)

    return LiveView(view.page, view.key, parts, view.order)


def _badge(name: str, number: int, *, meaning: str, kind: str) -> str:
    return render("_badge.html", id=name, number=number, meaning=meaning, kind=kind)


async def _from(first: bytes, others: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Write a piece, then the others; ends these when it ends."""
    async with aclosing(others):
        yield first
        async for piece in others:
            yield piece


class _BrowserRoute(Route):
    """Matches what a person opens in a browser; at the API's paths also a browser gets the API's answers."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a GET that accepts HTML."""
        is_one = scope["type"] == "http" and _is_of_browser(scope)
        return super().matches(scope) if is_one else (Match.NONE, {})


def _is_of_browser(scope: Scope) -> bool:
    if scope["method"] not in {"GET", "HEAD"}:
        return False
    of_api = scope["path"] == _API or scope["path"].startswith(f"{_API}/")
    return not of_api and any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


async def _refuse_path(_: Visit) -> Response:
    raise PageError(
        HTTPStatus.NOT_FOUND, "There is no such page", "Check the address, or go back to the overview."
    )


async def _nothing() -> None:
    """No registry, nothing to bring up to date."""


async def _show_static(request: Request) -> Response:
    file = static_file(request.path_params["name"])
    if file is None:
        raise PageError(HTTPStatus.NOT_FOUND, "No such file", "Go back to the overview.")
    cached = _FOR_GOOD if request.query_params.get("v") == file.mark else "no-cache"
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": cached}
    return Response(file.content, media_type=file.media_type, headers=headers)


async def _on_page_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PageError)  # noqa: S101 - registered for nothing else
    unavailable = error.status is HTTPStatus.SERVICE_UNAVAILABLE
    return problem_page(error, retry_seconds=RETRY_SECONDS if unavailable else None)


async def _on_http(_: Request, error: Exception) -> Response:
    """Answer what Starlette refuses itself: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    return problem_page(
        PageError(HTTPStatus(error.status_code), "There is no such page", "Go back to the overview.")
    )


async def _on_internal_error(_: Request, __: Exception) -> Response:
    """Answer a fault of ours; uvicorn logs it with its traceback."""
    return problem_page(
        PageError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "The registry failed to make this page",
            "Its log has the error. Try again; the other pages may work.",
        )
    )
