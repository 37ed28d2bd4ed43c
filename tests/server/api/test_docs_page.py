"""The page at /docs: from the wheel, under a strict policy, readable without a token."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.server.api_harness import serving
from tests.server.harness import running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running(auth_on=True) as service, serving(service) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/docs", "text/html"), ("/docs/page.css", "text/css"), ("/docs/page.js", "text/javascript")],
)
async def test_the_page_and_its_files_need_no_token(path: str, kind: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy


async def test_what_the_page_shows_needs_a_token(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).status_code == 401


async def test_the_page_names_no_other_host_and_writes_the_token_nowhere(client: httpx.AsyncClient) -> None:
    texts = [(await client.get(path)).text for path in ("/docs", "/docs/page.css", "/docs/page.js")]
    for text in texts:
        assert not re.search(r"https?://|//[a-z]", text.replace("// Shows", "")), text
        assert not re.search(r"localStorage|sessionStorage|document\.cookie|innerHTML|eval\(", text)
