"""The page at `/docs` on which a person reads and tries every route, from files in the wheel.

The page holds nothing secret, so that a browser can open it with auth on; what it shows needs a token. It
loads nothing from any other host, and its content security policy lets it run no script but its own.
"""

from functools import cache
from importlib.resources import files

from fastapi import Response

from gpu_agent.server.api.routing import api_router, needs

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = api_router("docs")


@router.get("/docs", include_in_schema=False, openapi_extra=needs("public"))
async def show_docs() -> Response:
    """Show the page."""
    return _file("index.html", "text/html; charset=utf-8")


@router.get("/docs/page.css", include_in_schema=False, openapi_extra=needs("public"))
async def show_style() -> Response:
    """Show the page's style."""
    return _file("page.css", "text/css; charset=utf-8")


@router.get("/docs/page.js", include_in_schema=False, openapi_extra=needs("public"))
async def show_script() -> Response:
    """Show the page's script."""
    return _file("page.js", "text/javascript; charset=utf-8")


def _file(name: str, media_type: str) -> Response:
    return Response(_content(name), media_type=media_type, headers=_HEADERS)


@cache
def _content(name: str) -> bytes:
    return files("gpu_agent.server.api").joinpath("docs_page", name).read_bytes()
