"""One request for a page: who asks, for what, and how it is answered."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.events import ANYBODY, Requester
from gpu_agent.registry.tokens import Role, allows
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.live import LiveView, Part, PartCache, order_mark
from gpu_agent.server.web.rendering import Markup, render
from gpu_agent.server.web.session import CSRF_FIELD

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer` browsers send `Origin: null` with the forms of a page to its own server, which could
    # then not be told from a foreign page's. No other host gets a referrer in either case.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageError(Exception):
    """Ends a request with a page that says what is wrong, and what to do."""

    def __init__(
        self, status: HTTPStatus, title: str, sentence: str, *, link: tuple[str, str] | None = None
    ) -> None:
        """`sentence` shows what stands between backquotes as code; `link` is an address and its words."""
        super().__init__(sentence)
        self.status, self.title, self.sentence, self.link = status, title, sentence, link


LEADS_NO_MORE = PageError(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The registry has no leader at the moment",
    "Another of its instances takes over within seconds. This page asks again by itself.",
)


@dataclass(frozen=True, slots=True)
class Person:
    """Who looks at a page."""

    role: Role
    name: str = ""
    """The operator token's; empty where it has none, and with auth off."""
    token_id: str | None = None
    """The session's; None with auth off."""
    parent_id: str | None = None
    """That of the operator token with which the person signed in."""
    csrf: str = field(default="", repr=False)
    """What each form carries."""
    is_valid: Callable[[], bool] = field(default=lambda: True, repr=False)
    """Whether the session is still valid: an endless answer ends with it."""

    def may(self, role: str) -> bool:
        """Whether this role, by its word, is allowed."""
        return allows(self.role, Role(role))


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request for a page."""

    request: Request
    registry: RegistryService
    person: Person
    form: Mapping[str, str] = field(default_factory=dict)
    """The fields of a form that was posted."""
    parts: PartCache
    """The elements of pages as they were rendered last, shared by all viewers."""
    nav: LiveView
    """The parts that every page has."""

    @property
    def query(self) -> Mapping[str, str]:
        """The fields of the address, the last of each name."""
        return {name: value for name, value in self.request.query_params.items() if value}

    def param(self, name: str) -> str:
        """Return what the path has in a place, such as a node's id."""
        return str(self.request.path_params[name])

    @property
    def requester(self) -> Requester:
        """Who acts: the name of the token, or its id if it has none; nobody with auth off."""
        if self.person.token_id is None:
            return ANYBODY
        return Requester(self.person.name or self.person.token_id, is_admin=self.person.role is Role.ADMIN)

    @property
    def path(self) -> str:
        """The address after the host, to return to."""
        query = self.request.url.query
        return f"{self.request.url.path}?{query}" if query else self.request.url.path

    @property
    def csrf_field(self) -> Markup:
        """The hidden field of each form that posts."""
        return Markup('<input type="hidden" name="{}" value="{}">').format(CSRF_FIELD, self.person.csrf)

    def address(self, **changed: str | None) -> str:
        """Return this page's address with other fields; None takes one away. The page begins at its start."""
        fields = {**self.query, "after": None, **changed}
        query = urlencode({name: value for name, value in fields.items() if value})
        return f"{self.request.url.path}?{query}" if query else self.request.url.path

    def part_html(self, part: Part) -> Markup:
        """Return an element as the stream would send it."""
        return Markup(self.parts.html(part))

    def render(
        self,
        template: str,
        *,
        page: str = "",
        live: LiveView | None = None,
        status: HTTPStatus = HTTPStatus.OK,
        **values: object,
    ) -> Response:
        """Answer with a page; `page` is its word in the navigation, `live` what of it changes by itself."""
        rows = () if live is None else live.order()
        nav = {part.id: self.part_html(part) for part in self.nav.parts(())}
        mark = order_mark(rows, "" if live is None else live.apart)
        if live is not None:
            self.parts.remember_order(mark, rows)
        html = render(
            template,
            visit=self,
            person=self.person,
            registry=self.registry,
            page=page,
            live_page="" if live is None else live.page,
            live_node="" if live is None else self.request.path_params.get("node_id", ""),
            live_from=self.parts.serial,
            live_order=mark,
            now=self.registry.clock.wall(),
            nav=nav,
            **values,
        )
        return HTMLResponse(html, status_code=status, headers=PAGE_HEADERS)

    def go_to(self, path: str) -> Response:
        """Have the browser get another page; what was posted is not posted again by a reload."""
        return see(path)

    def raise_if_refused(self, refusal: Refusal | None) -> None:
        """End the request with the fleet's sentence where it refused what was asked."""
        if refusal is not None:
            raise PageError(HTTPStatus.CONFLICT, "The registry did not do that", refusal.message)


Answer = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class PageRoute:
    """A path, and what answers it."""

    path: str
    answer: Answer
    needed: Role = Role.READ
    method: str = "GET"


def see(path: str) -> Response:
    """Send a browser to another page of this registry."""
    return Response(status_code=HTTPStatus.SEE_OTHER, headers={**PAGE_HEADERS, "Location": path})


def problem_page(error: PageError, *, retry_seconds: int | None = None) -> HTMLResponse:
    """Write a page that says what is wrong; it needs no registry and nobody signed in."""
    html = render(
        "problem.html",
        title=error.title,
        sentence=error.sentence,
        link=error.link,
        retry_seconds=retry_seconds,
    )
    headers = dict(PAGE_HEADERS)
    if retry_seconds is not None:
        headers["Retry-After"] = str(retry_seconds)
    return HTMLResponse(html, status_code=error.status, headers=headers)
