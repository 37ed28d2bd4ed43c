"""Signing in with an operator token, and signing out.

The token comes by POST once; a link that an operator asked for on this machine has a code in its place. What
the browser gets is a session, and never the token again.

A link shows a page with a button, and only the button takes the code. Otherwise another site's page could
sign a person in as somebody else, and the preview of a link would use it up.
"""

from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.token_issuing import SESSION_SECONDS, UNKNOWN_TOKEN
from gpu_agent.registry.tokens import Credential, CredentialKind
from gpu_agent.runtime.address import Address
from gpu_agent.server.http_headers import plausible_token
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.checks import PageChecks, log_call
from gpu_agent.server.web.rendering import render
from gpu_agent.server.web.session import end_session, local_path, set_session
from gpu_agent.server.web.visit import PAGE_HEADERS, PageError, Visit, see

_CREATE = "gpu-agent registry token create --operator read --name ana"
_USED = (
    "That link was used, or is older than five minutes. Sign in with an operator token, or get another link: "
    "`gpu-agent registry page`."
)
_NOT_LOCAL = (
    "Such a link works on the registry's own machine alone, and not through a proxy. Sign in with an "
    "operator token."
)
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""A request with any of them came through a proxy: its browser may be on any machine."""
_OTHER_KINDS = {
    CredentialKind.JOIN: "That is a join token: agents join with it. Sign in with an operator token.",
    CredentialKind.NODE: "That is the token of a node. Sign in with an operator token.",
    CredentialKind.SESSION: "That is the token of a session. Sign in with an operator token.",
}


async def show_signin(request: Request, registry: RegistryService, checks: PageChecks) -> Response:
    """Ask for an operator token, or whether to sign in by a link; changes nothing."""
    wanted = local_path(request.query_params.get("next", "/"))
    code = request.query_params.get("code")
    person = checks.person(request, registry)
    if code is not None and registry.auth_on:
        checks.check_leads(request)
        credential = registry.tokens.find_sign_in_code(code) if _is_local(request) else None
        if credential is not None:
            return _page(request, wanted="/", link=_Link(code, credential))
        if person is None:
            return _refuse_link(request, checks)
    if person is not None:
        return see(wanted)
    ended = request.query_params.get("ended") == "1"
    problem = "Your session has ended. Sign in again: you return to the page where you were."
    response = _page(request, wanted=wanted, problem=problem if ended else "")
    end_session(request, response)
    return response


async def sign_in(request: Request, registry: RegistryService, checks: PageChecks) -> Response:
    """Take an operator token once, or the code of a link, and give the browser a session of it."""
    form = await checks.form(request)
    checks.check_leads(request)
    wanted = local_path(form.get("next", "/"))
    if not registry.auth_on:
        return see(wanted)
    if "code" in form:
        return await _sign_in_by_link(form["code"], request, registry, checks=checks)
    shown = plausible_token(form.get("token", "").strip())
    credential = registry.tokens.authenticate(shown) if shown else None
    if credential is None or credential.kind is not CredentialKind.OPERATOR:
        reason = "no token" if not shown else "unknown token" if credential is None else credential.kind.value
        checks.log_unauthorized(request, reason)
        problem = _problem(shown, credential)
        return _page(request, wanted=wanted, problem=problem, status=HTTPStatus.UNAUTHORIZED)
    return await _begin_session(credential, wanted, request, registry=registry)


async def _sign_in_by_link(
    code: str, request: Request, registry: RegistryService, *, checks: PageChecks
) -> Response:
    """Take the code of a link once, from a browser of this machine: a link may end up in other hands."""
    credential = registry.tokens.take_sign_in_code(code) if _is_local(request) else None
    if credential is None:
        return _refuse_link(request, checks)
    return await _begin_session(credential, "/", request, registry=registry)


def _refuse_link(request: Request, checks: PageChecks) -> Response:
    checks.log_unauthorized(request, "unknown link")
    problem = _USED if _is_local(request) else _NOT_LOCAL
    return _page(request, wanted="/", problem=problem, status=HTTPStatus.UNAUTHORIZED)


def _is_local(request: Request) -> bool:
    """Whether the browser is on this machine, as far as a request shows: a TCP proxy here hides its own."""
    host = "" if request.client is None else request.client.host
    return Address(host, 0).is_loopback and not any(name in request.headers for name in _PROXY_HEADERS)


async def _begin_session(
    credential: Credential, wanted: str, request: Request, *, registry: RegistryService
) -> Response:
    if not registry.tokens.may_sign_in(credential):
        raise PageError(
            HTTPStatus.TOO_MANY_REQUESTS,
            "Too many sign-ins with this token",
            "It was used more than ten times within a minute. Wait a minute, and sign in again.",
        )
    session = await registry.tokens.begin_session(credential)
    if isinstance(session, Refusal):
        has_ended = session.code == UNKNOWN_TOKEN
        status = HTTPStatus.UNAUTHORIZED if has_ended else HTTPStatus.SERVICE_UNAVAILABLE
        raise PageError(status, "You could not be signed in", session.message)
    response = see(wanted)
    log_call(request, credential.token_id, credential.name, status=response.status_code)
    set_session(request, response, session.token, seconds=SESSION_SECONDS)
    return response


async def sign_out(visit: Visit) -> Response:
    """End the session, here and in the browser."""
    if visit.person.token_id is not None:
        visit.raise_if_refused(await visit.registry.tokens.revoke(visit.person.token_id))
    response = visit.go_to("/signin")
    log_call(visit.request, visit.person.token_id, visit.person.name, status=response.status_code)
    end_session(visit.request, response)
    return response


def _problem(shown: str, credential: Credential | None) -> str:
    """Say why a text signs nobody in."""
    if credential is not None:
        return _OTHER_KINDS[credential.kind]
    if not shown:
        return "That cannot be a token: copy the whole line that starts with gpuo_, and nothing else."
    return "That is no operator token of this registry, or it has ended. Ask an admin for a new one."


@dataclass(frozen=True, slots=True)
class _Link:
    """What the button of a link's page says and sends."""

    code: str = field(repr=False)
    credential: Credential

    @property
    def who(self) -> str:
        """Name the operator token, by its id where it has no name, and its role."""
        one = self.credential
        return f"{one.name or f'token {one.token_id}'} ({one.role})"


def _page(
    request: Request,
    *,
    wanted: str,
    problem: str = "",
    link: _Link | None = None,
    status: HTTPStatus = HTTPStatus.OK,
) -> HTMLResponse:
    html = render(
        "signin.html",
        wanted=wanted,
        problem=problem,
        link=link,
        host=request.headers.get("host", ""),
        command=_CREATE,
        hours=round(SESSION_SECONDS / 3600),
    )
    return HTMLResponse(html, status_code=status, headers=PAGE_HEADERS)
