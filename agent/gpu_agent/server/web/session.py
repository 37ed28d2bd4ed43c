"""Sessions: a person signs in with an operator token once, and the browser then shows a cookie.

The cookie holds a session's token, which the registry stores as a digest as it does every token, so that a
restart or a takeover keeps people signed in. Scripts cannot read it. A form carries a second secret that is
derived from it (HMAC), and a request that changes something must also name this registry as its origin.

`SameSite=Lax`: of what another site's page makes a browser send, only following a link brings the cookie, so
that a link in a chat or a mail opens the page. That is a GET, and no GET of the fleet page changes anything.

Cookies ignore ports. So the name has the port by which the browser calls the registry: two registries on one
host leave each other's sessions alone. With TLS the prefix `__Host-` keeps other hosts out.
"""

import hashlib
import hmac
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import Response

CSRF_FIELD = "csrf"
_COOKIE = "gpu_agent_session"
_HOST_PREFIX = "__Host-"
_LONGEST_NEXT = 2048
_CSRF_CONTEXT = b"gpu-agent fleet page form"


def cookie_name(host: str, *, encrypted: bool = False) -> str:
    """Return the name of the cookie of a registry, given the `Host` header of a request."""
    try:
        port = urlsplit(f"//{host}").port
    except ValueError:
        port = None
    name = _COOKIE if port is None else f"{_COOKIE}_{port}"
    return _HOST_PREFIX + name if encrypted else name


def session_token(request: Request) -> str | None:
    """Return the token that the browser shows; None without one."""
    name = _shown_name(request)
    return None if name is None else request.cookies[name]


def set_session(request: Request, response: Response, token: str, *, seconds: float) -> None:
    """Give the browser a session."""
    encrypted = _is_encrypted(request)
    name = cookie_name(_host(request), encrypted=encrypted)
    response.set_cookie(
        name, token, max_age=int(seconds), path="/", secure=encrypted, httponly=True, samesite="lax"
    )


def end_session(request: Request, response: Response) -> None:
    """Have the browser forget the session that it shows."""
    name = _shown_name(request)
    if name is not None:
        secure = name.startswith(_HOST_PREFIX)
        response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="lax")


def _shown_name(request: Request) -> str | None:
    """Return the name of the cookie that the browser shows: behind a proxy with TLS only it tells of TLS."""
    names = (cookie_name(_host(request), encrypted=encrypted) for encrypted in (True, False))
    return next((name for name in names if name in request.cookies), None)


def _host(request: Request) -> str:
    return request.headers.get("host", "")


def csrf_of(secret: str) -> str:
    """Derive what forms carry from a session's token, or with auth off from the process's own secret."""
    return hmac.new(secret.encode(), _CSRF_CONTEXT, hashlib.sha256).hexdigest()


def is_csrf(shown: str, expected: str) -> bool:
    """Whether a form carries the right secret."""
    return hmac.compare_digest(shown.encode(), expected.encode())


def _is_encrypted(request: Request) -> bool:
    """Whether the browser speaks TLS: to this port, or to a proxy before it, as the page's origin shows."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def local_path(wanted: str) -> str:
    """Return a path of this registry to go to after the sign-in; `/` for anything else.

    Two slashes, a slash and a backslash, and control characters lead browsers to another host.
    """
    if not wanted.startswith("/") or len(wanted) > _LONGEST_NEXT or "\\" in wanted:
        return "/"
    if not (wanted.isascii() and wanted.isprintable()):
        return "/"
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return "/"
    if parts.scheme or parts.netloc or wanted.startswith("//"):
        return "/"
    return "/" if parts.path == "/signin" or parts.path.startswith("/web/") else wanted


def signin_path(request: Request) -> str:
    """Return where a browser without a valid session goes, and from there back."""
    path = request.url.path if request.method == "GET" else "/"
    query = f"?{request.url.query}" if request.url.query and request.method == "GET" else ""
    fields = {"next": local_path(path + query)}
    if session_token(request) is not None:
        fields["ended"] = "1"
    return "/signin?" + urlencode({name: value for name, value in fields.items() if value != "/"})
