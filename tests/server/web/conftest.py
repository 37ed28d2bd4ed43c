"""A registry with auth on, its pages over a real socket, and browsers' requests to them."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from tests.server.api_harness import operator_token, serving
from tests.server.web.browsing import sign_in
from tests.server.web.fleet import Fleet, fleet


@pytest.fixture
async def played() -> AsyncIterator[Fleet]:
    async with fleet() as played:
        yield played


@pytest.fixture
async def browser(played: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has not signed in."""
    async with serving(played.service) as client:
        yield client


@pytest.fixture
async def admin(played: Fleet, browser: httpx.AsyncClient) -> httpx.AsyncClient:
    """A browser in which an admin has signed in."""
    await sign_in(browser, await operator_token(played.service, Role.ADMIN))
    return browser
