"""Signing in with an operator token: what the browser gets, what it shows, and when that ends."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Address as ClientAddress
from starlette.requests import Request

from gpu_agent.registry.token_issuing import MOST_SESSIONS
from gpu_agent.registry.tokens import Role
from gpu_agent.server import tokens
from gpu_agent.server.web.session import cookie_name, local_path
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.api import NewToken
from tests.server.api_harness import bearer, logged, operator_token, serving
from tests.server.harness import running
from tests.server.web.browsing import cookie_of, csrf_of, origin_of, post, session_of, sign_in
from tests.server.web.fleet import Fleet, fleet


async def token_of(played: Fleet, role: Role = Role.READ) -> str:
    return await operator_token(played.service, role)


async def test_a_page_without_a_session_leads_to_the_sign_in_and_back(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    first = await browser.get("/nodes?show=free&q=a%26b")
    assert (first.status_code, first.headers["location"]) == (
        303,
        "/signin?next=%2Fnodes%3Fshow%3Dfree%26q%3Da%2526b",
    )
    page = await browser.get(first.headers["location"])
    assert 'value="/nodes?show=free&amp;q=a%26b"' in page.text
    done = await sign_in(browser, await token_of(played), to="/nodes?show=free&q=a%26b")
    assert (done.status_code, done.headers["location"]) == (303, "/nodes?show=free&q=a%26b")
    assert (await browser.get("/nodes?show=free")).status_code == 200


async def test_the_cookie_is_a_session_that_scripts_and_other_sites_cannot_use(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    token = await token_of(played)
    cookie = (await sign_in(browser, token)).headers["set-cookie"]
    assert token not in cookie
    assert cookie.startswith(f"gpu_agent_session_{browser.base_url.port}=gpus_")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/", "max-age=43200"} <= parts
    assert "secure" not in parts


async def test_behind_a_proxy_with_tls_the_cookie_is_sent_over_tls_alone(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    headers = {"Origin": f"https://{browser.base_url.netloc.decode()}"}
    token = await token_of(played)
    answer = await browser.post("/signin", data={"token": token, "next": "/"}, headers=headers)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"__Host-gpu_agent_session_{browser.base_url.port}=gpus_")
    assert {"Secure", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    session = {"Cookie": cookie.partition(";")[0]}
    assert (await browser.get("/nodes", headers=session)).status_code == 200
    out = {"csrf": await csrf_of(browser, headers=session)}
    ended = await browser.post("/web/signout", data=out, headers={**headers, **session})
    assert ended.headers["set-cookie"].startswith("__Host-")
    assert "Secure" in ended.headers["set-cookie"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("gpu.example.org:8081", "gpu_agent_session_8081"),
        ("[::1]:8082", "gpu_agent_session_8082"),
        ("gpu.example.org", "gpu_agent_session"),
        ("gpu.example.org:x", "gpu_agent_session"),
        ("", "gpu_agent_session"),
    ],
)
def test_the_name_of_the_cookie_has_the_port_that_the_browser_calls(host: str, name: str) -> None:
    assert cookie_name(host) == name
    assert cookie_name(host, encrypted=True) == f"__Host-{name}"


async def test_two_registries_of_one_host_leave_each_others_sessions_alone(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    async with fleet() as other, serving(other.service) as second:
        await sign_in(browser, await token_of(played))
        await sign_in(second, await token_of(other))
        both = {"Cookie": "; ".join(f"{cookie_of(one)}={session_of(one)}" for one in (browser, second))}
        assert (await browser.get("/nodes", headers=both)).status_code == 200
        assert (await second.get("/nodes", headers=both)).status_code == 200
        foreign = {"Cookie": f"{cookie_of(browser)}={session_of(browser)}"}
        second.cookies.clear()
        page = await second.get("/signin", headers=foreign)
        assert (page.status_code, "set-cookie" in page.headers) == (200, False)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("gpuo_00000000_unknown", "no operator token of this registry"),
        ("two words", "cannot be a token"),
        ("JOIN", "That is a join token"),
    ],
)
async def test_what_is_no_operator_token_is_refused_in_words(
    shown: str, said: str, played: Fleet, *, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    if shown == "JOIN":
        made = await played.service.tokens.create_join()
        assert isinstance(made, NewToken)
        shown = made.token
    with caplog.at_level(logging.WARNING):
        await sign_in(browser, shown)
        answer = await sign_in(browser, shown)
    assert answer.status_code == 401
    assert said in answer.text
    assert shown not in answer.text
    assert session_of(browser) is None
    assert len(logged(caplog, "operator_unauthorized")) == 1
    assert shown not in caplog.text


async def test_a_session_outlives_a_restart_of_the_registry(tmp_path: Path) -> None:
    database = tmp_path / "registry.db"
    async with fleet(store=SqliteStore(database)) as before, serving(before.service) as first:
        await sign_in(first, await operator_token(before.service, Role.READ))
        session = session_of(first)
    assert session is not None
    async with running(store=SqliteStore(database), auth_on=True) as service, serving(service) as second:
        second.cookies.set(cookie_of(second), session)
        assert (await second.get("/nodes")).status_code == 200


async def test_a_session_ends_with_the_operator_token(played: Fleet, browser: httpx.AsyncClient) -> None:
    token = await token_of(played)
    await sign_in(browser, token)
    assert (await browser.get("/nodes")).status_code == 200
    await played.service.tokens.revoke(token.split("_")[1])
    gone = await browser.get("/nodes")
    assert (gone.status_code, gone.headers["location"]) == (303, "/signin?next=%2Fnodes&ended=1")
    page = await browser.get(gone.headers["location"])
    assert "Your session has ended" in page.text
    assert session_of(browser) is None


async def test_a_session_is_never_longer_than_its_operator_token(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    made = await played.service.tokens.create_operator(Role.READ, name="ana", ttl_seconds=60)
    assert isinstance(made, NewToken)
    await sign_in(browser, made.token)
    (session,) = (one for one in played.service.tokens.all() if one.kind == "session")
    assert (session.parent, session.role, session.name) == (made.token_id, "read", "ana")
    assert session.expires_at is not None
    assert made.expires_at is not None
    assert session.expires_at <= made.expires_at + 0.01


async def test_signing_out_ends_the_session_itself(
    played: Fleet, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await sign_in(browser, await token_of(played))
    session = session_of(browser)
    csrf = await csrf_of(browser)
    with caplog.at_level(logging.INFO):
        answer = await post(browser, "/web/signout", {}, csrf=csrf)
    assert (answer.status_code, answer.headers["location"]) == (303, "/signin")
    assert len(logged(caplog, "operator_request")) == 1
    assert session is not None
    assert session_of(browser) is None
    assert played.service.tokens.authenticate(session) is None


async def test_of_one_token_the_oldest_session_ends_when_there_are_too_many(played: Fleet) -> None:
    credential = played.service.tokens.authenticate(await token_of(played))
    assert credential is not None
    sessions = []
    for _ in range(MOST_SESSIONS + 1):
        made = await played.service.tokens.begin_session(credential)
        assert isinstance(made, NewToken)
        sessions.append(made.token)
    valid = [played.service.tokens.authenticate(one) is not None for one in sessions]
    assert valid == [False, *[True] * MOST_SESSIONS]


async def test_with_one_token_people_sign_in_ten_times_a_minute_and_no_other_waits(
    played: Fleet, browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    token, events = await token_of(played), played.service.event_log.last_id
    with caplog.at_level(logging.INFO):
        answers = [await sign_in(browser, token) for _ in range(11)]
    assert [one.status_code for one in answers] == [*[303] * 10, 429]
    assert "Wait a minute, and sign in again" in answers[-1].text
    assert played.service.event_log.last_id == events
    assert len(logged(caplog, "operator_request")) == 10
    assert (await sign_in(browser, await token_of(played, Role.ADMIN))).status_code == 303


async def test_the_api_takes_no_session_and_the_page_no_bearer_token(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    token = await token_of(played, Role.ADMIN)
    assert (await browser.get("/nodes", headers=bearer(token))).status_code == 303
    await sign_in(browser, token)
    assert (await browser.get("/v1/nodes")).status_code == 401
    session = session_of(browser) or ""
    assert (await browser.get("/v1/nodes", headers=bearer(session))).status_code == 401
    browser.cookies.clear()
    browser.cookies.set(cookie_of(browser), token)
    assert (await browser.get("/nodes")).status_code == 303


async def test_a_session_lets_no_node_in(played: Fleet, browser: httpx.AsyncClient) -> None:
    await sign_in(browser, await token_of(played))
    again = await sign_in(browser, session_of(browser) or "")
    assert "That is the token of a session" in again.text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://example.org/",
        "//example.org/",
        "/\\example.org",
        "\\\\example.org",
        "/nodes\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "nodes",
        "/signin?next=/signin",
        "/web/signout",
        "/n\u00f6des",
        "/" + "a" * 3000,
    ],
)
async def test_nobody_is_led_to_another_host(wanted: str, played: Fleet, browser: httpx.AsyncClient) -> None:
    assert local_path(wanted) == "/"
    done = await sign_in(browser, await token_of(played), to=wanted)
    assert done.headers["location"] == "/"


@pytest.fixture
async def open_registry() -> AsyncIterator[httpx.AsyncClient]:
    async with running(auth_on=False) as service, serving(service) as client:
        yield client


async def test_with_auth_off_nobody_signs_in_and_forms_are_still_checked(
    open_registry: httpx.AsyncClient,
) -> None:
    page = await open_registry.get("/nodes")
    assert page.status_code == 200
    assert "auth off" in page.text
    assert (await open_registry.get("/signin")).headers["location"] == "/"
    refused = await open_registry.post("/web/signout", data={"csrf": "x"}, headers=origin_of(open_registry))
    assert refused.status_code == 403
    foreign = await open_registry.post(
        "/web/signout", data={"csrf": "x"}, headers={"Origin": "http://evil.example"}
    )
    assert "came from another page" in foreign.text


async def link_of(played: Fleet, browser: httpx.AsyncClient, role: Role = Role.READ) -> str:
    """Have an operator's program ask for a link; returns its path."""
    token = await token_of(played, role)
    answer = await browser.post("/v1/sign-in-links", json={}, headers=bearer(token))
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    return str(answer.json()["path"])


async def follow(browser: httpx.AsyncClient, link: str) -> httpx.Response:
    """Press the button of a link's page."""
    return await post(browser, "/signin", {"code": link.partition("code=")[2]})


async def test_a_link_signs_in_once_as_who_asked_for_it(played: Fleet, browser: httpx.AsyncClient) -> None:
    link = await link_of(played, browser)
    first = await follow(browser, link)
    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert (await browser.get("/nodes")).status_code == 200
    (session,) = (one for one in played.service.tokens.all() if one.kind == "session")
    assert session.role == "read"
    browser.cookies.clear()
    for again in (await browser.get(link), await follow(browser, link)):
        assert again.status_code == 401
        assert "was used, or is older than five minutes" in again.text
        assert "get another link: <code>gpu-agent registry page</code>" in again.text
    assert session_of(browser) is None


async def test_opening_a_link_signs_nobody_in_and_says_who_it_is_for(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    link = await link_of(played, browser, Role.ADMIN)
    for _ in range(2):
        assert (await browser.head(link)).status_code == 200
        page = await browser.get(link)
        assert (page.status_code, session_of(browser)) == (200, None)
        (name,) = (one.name for one in played.service.tokens.all() if one.role == "admin")
        assert f"Sign in as {name} (admin)</button>" in page.text
        assert '<input name="token"' not in page.text
    assert (await follow(browser, link)).status_code == 303


async def test_another_sites_page_signs_nobody_in_by_a_link(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    await sign_in(browser, await token_of(played, Role.ADMIN))
    before = session_of(browser)
    link = await link_of(played, browser)
    code = {"code": link.partition("code=")[2]}
    foreign = await browser.post("/signin", data=code, headers={"Origin": "http://evil.example"})
    assert (foreign.status_code, "came from another page" in foreign.text) == (403, True)
    await browser.get(link)
    assert session_of(browser) == before
    assert (await follow(browser, link)).status_code == 303
    assert session_of(browser) not in {before, None}
    assert (await browser.get(link)).headers["location"] == "/"


async def test_a_new_link_replaces_the_oldest_of_its_own_token_alone(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    kept = await link_of(played, browser, Role.ADMIN)
    token = await token_of(played)
    links = []
    for _ in range(6):
        answer = await browser.post("/v1/sign-in-links", json={}, headers=bearer(token))
        links.append(answer.json()["path"])
    assert [(await browser.get(one)).status_code for one in (*links, kept)] == [401, *[200] * 6]


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
async def test_a_link_does_not_work_through_a_proxy_of_this_machine(
    header: str, played: Fleet, browser: httpx.AsyncClient
) -> None:
    link = await link_of(played, browser)
    code = {"code": link.partition("code=")[2]}
    proxied = {header: "192.0.2.7"}
    for refused in (
        await browser.get(link, headers=proxied),
        await browser.post("/signin", data=code, headers={**origin_of(browser), **proxied}),
    ):
        assert (refused.status_code, "not through a proxy" in refused.text) == (401, True)
    assert (await follow(browser, link)).status_code == 303


async def test_a_link_is_good_for_five_minutes(
    played: Fleet, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SIGN_IN_SECONDS", 0.0)
    link = await link_of(played, browser)
    assert (await browser.get(link)).status_code == 401
    assert (await follow(browser, link)).status_code == 401


async def test_a_link_whose_token_has_ended_signs_nobody_in(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    link = await link_of(played, browser)
    (token,) = (one for one in played.service.tokens.all() if one.role == "read")
    await played.service.tokens.revoke(token.token_id)
    assert (await follow(browser, link)).status_code == 401
    assert session_of(browser) is None


async def test_a_link_works_on_the_registrys_machine_alone(
    played: Fleet, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await link_of(played, browser)
    monkeypatch.setattr(Request, "client", property(lambda _: ClientAddress("192.0.2.7", 4711)))
    for answer in (await browser.get(link), await follow(browser, link)):
        assert answer.status_code == 401
        assert "on the registry&#39;s own machine alone" in answer.text
    monkeypatch.undo()
    assert (await follow(browser, link)).status_code == 303


async def test_with_auth_off_the_link_is_the_page() -> None:
    async with fleet(auth_on=False) as played, serving(played.service) as client:
        answer = await client.post("/v1/sign-in-links", json={})
        assert answer.json() == {"path": "/", "expires_at": None}
