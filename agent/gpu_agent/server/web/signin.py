"""Signing in with an operator token, and signing out.

The token comes by POST once; a link that an operator asked for on this machine has a code in its place. What
the browser gets is a session, and never the token again.
"""

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
from gpu_agent.server.web.session import (
    end_session,
    is_encrypted,
    local_path,
    session_token,
    set_session,
)
from gpu_agent.server.web.visit import PAGE_HEADERS, PageError, Visit, see

_CREATE = "gpu-agent registry token create --operator read --name ana"
_USED = (
    "That link was used, or is older than five minutes. Sign in with an operator token, or get another link: "
    "`gpu-agent registry page`."
)
_NOT_LOCAL = "Such a link works on the registry's own machine alone. Sign in with an operator token."
_OTHER_KINDS = {
    CredentialKind.JOIN: "That is a join token: agents join with it. Sign in with an operator token.",
    CredentialKind.NODE: "That is the token of a node. Sign in with an operator token.",
    CredentialKind.SESSION: "That is the token of a session. Sign in with an operator token.",
}


async def show_signin(request: Request, registry: RegistryService, checks: PageChecks) -> Response:
    """Ask for an operator token, or go on where the browser has a session or a link that signs in."""
    wanted = local_path(request.query_params.get("next", "/"))
    code = request.query_params.get("code")
    if checks.person(request, registry) is not None:
        return see(wanted)
    if code is not None:
        return await _sign_in_by_link(code, request, registry, checks=checks)
    ended = request.query_params.get("ended") == "1"
    problem = "Your session has ended. Sign in again: you return to the page where you were."
    response = _page(request, wanted=wanted, problem=problem if ended else "")
    if session_token(request) is not None:
        end_session(response)
    return response


async def sign_in(request: Request, registry: RegistryService, checks: PageChecks) -> Response:
    """Take an operator token once, and give the browser a session of it."""
    form = await checks.form(request)
    checks.check_leads(request)
    wanted = local_path(form.get("next", "/"))
    if not registry.auth_on:
        return see(wanted)
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
    checks.check_leads(request)
    host = "" if request.client is None else request.client.host
    is_local = Address(host, 0).is_loopback
    credential = registry.tokens.take_sign_in_code(code) if is_local else None
    if credential is not None:
        return await _begin_session(credential, "/", request, registry=registry)
    checks.log_unauthorized(request, "unknown link")
    problem = _USED if is_local else _NOT_LOCAL
    return _page(request, wanted="/", problem=problem, status=HTTPStatus.UNAUTHORIZED)


async def _begin_session(
    credential: Credential, wanted: str, request: Request, *, registry: RegistryService
) -> Response:
    session = await registry.tokens.begin_session(credential)
    if isinstance(session, Refusal):
        has_ended = session.code == UNKNOWN_TOKEN
        status = HTTPStatus.UNAUTHORIZED if has_ended else HTTPStatus.SERVICE_UNAVAILABLE
        raise PageError(status, "You could not be signed in", session.message)
    response = see(wanted)
    log_call(request, credential.token_id, credential.name, status=response.status_code)
    set_session(response, session.token, seconds=SESSION_SECONDS, encrypted=is_encrypted(request))
    return response


async def sign_out(visit: Visit) -> Response:
    """End the session, here and in the browser."""
    if visit.person.token_id is not None:
        visit.raise_if_refused(await visit.registry.tokens.revoke(visit.person.token_id))
    response = visit.go_to("/signin")
    end_session(response)
    return response


def _problem(shown: str, credential: Credential | None) -> str:
    """Say why a text signs nobody in."""
    if credential is not None:
        return _OTHER_KINDS[credential.kind]
    if not shown:
        return "That cannot be a token: copy the whole line that starts with gpuo_, and nothing else."
    return "That is no operator token of this registry, or it has ended. Ask an admin for a new one."


def _page(request: Request, *, wanted: str, problem: str, status: HTTPStatus = HTTPStatus.OK) -> HTMLResponse:
    html = render(
        "signin.html",
        wanted=wanted,
        problem=problem,
        host=request.headers.get("host", ""),
        command=_CREATE,
        hours=round(SESSION_SECONDS / 3600),
    )
    return HTMLResponse(html, status_code=status, headers=PAGE_HEADERS)
