"""The page at an instance that does not lead: the leader answers, or a page says that none leads."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.web.rendering import static_url
from tests.server.api_harness import operator_token
from tests.server.instances import InstanceUnderTest, client, instance
from tests.server.web.browsing import csrf_of, post, sign_in
from tests.server.web.fleet import Fleet, Machine
from tests.server.web.test_live_pages import next_parts, opened


@pytest.fixture
async def leader(played: Fleet) -> AsyncIterator[InstanceUnderTest]:
    async with instance() as leader:
        leader.lead(played.service)
        yield leader


@pytest.fixture
async def at_standby(leader: InstanceUnderTest, played: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    async with instance(leader=leader.api, copy=played.service) as standby, client(standby) as browser:
        yield browser


@pytest.fixture
async def alone(played: Fleet) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at an instance that knows of no leader."""
    async with instance(copy=played.service) as standby, client(standby) as browser:
        yield browser


async def test_a_standby_passes_on_the_sign_in_the_cookie_and_the_stream(
    played: Fleet, at_standby: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1))
    done = await sign_in(at_standby, await operator_token(played.service, Role.OPERATE), to="/nodes")
    assert (done.status_code, done.headers["location"]) == (303, "/nodes")
    async with opened(at_standby) as stream:
        await stream.next()
        await played.service.cordon(machine.node_id, reason="seen at the standby")
        assert "seen at the standby" in (await next_parts(stream)).document[f"n-{machine.node_id}"]
    ended = await post(at_standby, "/web/signout", {}, csrf=await csrf_of(at_standby))
    assert (ended.status_code, ended.headers["location"]) == (303, "/signin")


async def test_without_a_leader_a_page_says_so_and_asks_again(alone: httpx.AsyncClient) -> None:
    for path in ("/", "/nodes", "/signin", "/nodes/x", "/jobs"):
        answer = await alone.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"].startswith("text/html")
        assert "The registry has no leader at the moment" in answer.text
        assert '<meta http-equiv="refresh" content="3">' in answer.text
        assert answer.headers["retry-after"] == "3"
        assert answer.headers["cache-control"] == "no-store"
    assert (await alone.get("/v1/nodes")).json()["code"] == "REGISTRY_BUSY"


async def test_without_a_leader_a_browser_gets_that_page_at_an_unknown_address_too(
    alone: httpx.AsyncClient,
) -> None:
    as_browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/nowhere", "/docs"):
        answer = await alone.get(path, headers=as_browser)
        assert answer.headers["content-type"].startswith("text/html")
        assert "The registry has no leader at the moment" in answer.text
        assert (await alone.get(path)).json()["code"] == "REGISTRY_BUSY"
    assert (await alone.get("/v1/nodes", headers=as_browser)).json()["code"] == "REGISTRY_BUSY"
    readiness = await alone.get("/readyz", headers=as_browser)
    assert "json" in readiness.headers["content-type"]


async def test_the_style_of_that_page_comes_from_the_instance_itself(alone: httpx.AsyncClient) -> None:
    assert (await alone.get(static_url("fleet.css"))).status_code == 200


async def test_a_page_is_not_answered_once_the_lease_has_ended(
    played: Fleet, leader: InstanceUnderTest
) -> None:
    async with client(leader) as browser:
        await sign_in(browser, await operator_token(played.service, Role.ADMIN))
        csrf = await csrf_of(browser)
        leader.lease_valid = False
        assert "no leader at the moment" in (await browser.get("/nodes")).text
        refused = await post(browser, "/web/signout", {}, csrf=csrf)
        assert refused.status_code == 503
        leader.lease_valid = True
        assert (await browser.get("/nodes")).status_code == 200
