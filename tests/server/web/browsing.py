"""What a browser does: it posts forms with its origin, and keeps the cookie."""

import re

import httpx

from gpu_agent.server.web.session import cookie_name

FORM = "application/x-www-form-urlencoded"


def origin_of(client: httpx.AsyncClient) -> dict[str, str]:
    return {"Origin": str(client.base_url).rstrip("/")}


async def post(
    client: httpx.AsyncClient, path: str, fields: dict[str, str], *, csrf: str | None = None
) -> httpx.Response:
    """Send a form as a page of this registry does."""
    sent = fields if csrf is None else {**fields, "csrf": csrf}
    return await client.post(path, data=sent, headers=origin_of(client))


async def sign_in(client: httpx.AsyncClient, token: str, *, to: str = "/") -> httpx.Response:
    return await post(client, "/signin", {"token": token, "next": to})


async def csrf_of(
    client: httpx.AsyncClient, path: str = "/nodes", *, headers: dict[str, str] | None = None
) -> str:
    """The secret in the forms of a page."""
    page = await client.get(path, headers=headers)
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert found is not None
    return found[1]


def cookie_of(client: httpx.AsyncClient) -> str:
    """The name of the cookie that this browser gets."""
    return cookie_name(client.base_url.netloc.decode())


def session_of(client: httpx.AsyncClient) -> str | None:
    return client.cookies.get(cookie_of(client))
