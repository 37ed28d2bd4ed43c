"""What every request for a page must pass before the page answers.

A request must name this registry (`Host`), come from a session with the role that its page needs, and where
it changes something also from a page of this registry: by its `Origin`, and by the secret in the form. The
API does not take the cookie, and these pages take no bearer token. What changes something is logged as a call
of the API is, and a session or a token that is not valid once a minute for each origin.
"""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from gpu_agent.registry.tokens import CredentialKind, Role, allows
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.http_headers import FORWARDED, MAY_ANSWER, is_same_origin, names_this_host
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.service import RegistryService, current_trace_id
from gpu_agent.server.web.session import CSRF_FIELD, csrf_of, is_csrf, session_token
from gpu_agent.server.web.visit import LEADS_NO_MORE, PageError, Person

MAX_FORM_BYTES = 16 * 1024
_MOST_FIELDS = 64
_MAX_LOGGED_PATH = 300
_LOG = Logger("server.operator")


class PageChecks:
    """The checks of one server's pages."""

    def __init__(self, hosts: frozenset[str] | None) -> None:
        """Let requests name these hosts; None where they cannot be known."""
        self._hosts = hosts
        self._log_limit = LogLimit(_LOG.warning)
        self._own_secret = secrets.token_hex(32)
        """With auth off: what the secret in forms is derived from, until this process ends."""

    def stop(self) -> None:
        """Log how many violations were not logged one by one."""
        self._log_limit.stop()

    def check_host(self, request: Request) -> None:
        """Refuse a request for another host: a web page whose name resolves to this address sends such."""
        host = request.headers.get("host", "")
        if not names_this_host(host, self._hosts) and FORWARDED not in request.scope:
            raise PageError(
                HTTPStatus.FORBIDDEN,
                "This is not the registry's name",
                f"This registry is not called {host!r}: use the address it listens on.",
            )

    async def form(self, request: Request) -> Mapping[str, str]:
        """Return the fields of a form, which a page of this registry must have sent."""
        if not is_same_origin(request.headers.get("origin", ""), request.headers.get("host", "")):
            raise PageError(
                HTTPStatus.FORBIDDEN,
                "This form came from another page",
                "Only pages of this registry may send forms to it. Nothing was done. If a proxy is in front "
                "of the registry, it must pass the Host header on.",
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise PageError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "This is no form", "Use the page's own form.")
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_FORM_BYTES:
                    raise PageError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        "This form is too large",
                        "Write less, and send it again.",
                    )
            fields = parse_qsl(
                body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
            )
        except (ClientDisconnect, ValueError):
            raise PageError(
                HTTPStatus.BAD_REQUEST, "This form cannot be read", "Reload the page, and send it again."
            ) from None
        return dict(fields)

    def person(self, request: Request, registry: RegistryService) -> Person | None:
        """Return who asks; None where the browser shows no valid session."""
        if not registry.auth_on:
            return Person(Role.ADMIN, csrf=csrf_of(self._own_secret))
        token = session_token(request)
        credential = None if token is None else registry.tokens.authenticate(token)
        if token is None or credential is None or credential.kind is not CredentialKind.SESSION:
            return None
        if credential.role is None:
            return None
        return Person(
            credential.role,
            credential.name,
            credential.token_id,
            credential.parent_id,
            csrf_of(token),
            lambda: registry.tokens.authenticate(token) is not None,
        )

    def check_role(self, request: Request, person: Person, needed: Role) -> None:
        """Refuse a person whose role does not suffice."""
        if allows(person.role, needed):
            return
        call = _call(request, person.token_id, person.name)
        self._log_limit.violation(
            "operator_refused", person.token_id or "", kind=needed.value, **call, needed=needed.value
        )
        raise PageError(
            HTTPStatus.FORBIDDEN,
            "Your role does not allow this",
            f"This needs the role {needed}, and you have {person.role}: ask an admin to do it, or to make "
            "you another token.",
        )

    @staticmethod
    def check_csrf(form: Mapping[str, str], person: Person) -> None:
        """Refuse a form without the secret of this session."""
        if not is_csrf(form.get(CSRF_FIELD, ""), person.csrf):
            raise PageError(
                HTTPStatus.FORBIDDEN,
                "This form is not valid any more",
                "You signed in again, or the registry restarted, since the page was loaded. Nothing was "
                "done: go back, reload the page and send the form again.",
            )

    @staticmethod
    def check_leads(request: Request) -> None:
        """Refuse a request, after it was read, where this instance's lease has ended."""
        may_answer = request.scope.get(MAY_ANSWER)
        if may_answer is not None and not may_answer():
            raise LEADS_NO_MORE

    def log_unauthorized(self, request: Request, reason: str) -> None:
        """Log a caller without a valid token or session."""
        host = "unknown" if request.client is None else request.client.host
        self._log_limit.violation(
            "operator_unauthorized", origin_of(host), kind=reason, address=host, reason=reason
        )


def log_call(request: Request, token_id: str | None, name: str, *, status: int) -> None:
    """Log what may have changed something, as a call of the API is logged."""
    _LOG.info("operator_request", **_call(request, token_id, name), status=status)


def _call(request: Request, token_id: str | None, name: str) -> dict[str, object]:
    trace_id = current_trace_id()
    return {
        "method": request.method,
        "path": request.scope["path"][:_MAX_LOGGED_PATH],
        "token_id": token_id,
        "name": name or None,
        **({} if trace_id is None else {"trace_id": trace_id}),
    }
