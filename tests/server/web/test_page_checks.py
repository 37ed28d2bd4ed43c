"""What every request for a page must pass, and the headers that every page has."""

import logging
from base64 import urlsafe_b64encode

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.web.checks import MAX_FORM_BYTES
from gpu_agent.server.web.live import PartCache
from gpu_agent.server.web.rendering import static_url
from tests.server.api_harness import ROUTES, logged, operator_token, problem
from tests.server.web.browsing import cookie_of, csrf_of, origin_of, post, session_of, sign_in
from tests.server.web.fleet import Fleet, Machine

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGES = ("/", "/nodes", "/signin", "/nodes/none", "/web/none")


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_has_the_strict_headers(path: str, admin: httpx.AsyncClient) -> None:
    answer = await admin.get(path)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert " style=" not in answer.text
    assert "<script>" not in answer.text


async def test_static_files_need_no_session_and_may_be_kept_for_good(browser: httpx.AsyncClient) -> None:
    for name, kind in (("fleet.css", "text/css"), ("fleet.js", "text/javascript"), ("icon.svg", "image/svg")):
        answer = await browser.get(static_url(name))
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert (await browser.get(f"/web/static/{name}?v=old")).headers["cache-control"] == "no-cache"
    assert (await browser.get("/web/static/..%2fapp.py")).status_code == 404


async def test_the_pages_are_no_part_of_the_api(admin: httpx.AsyncClient) -> None:
    assert not {path for _, path in ROUTES} & {"/", "/nodes", "/signin"}
    assert (await admin.get("/nothing")).status_code == 401  # the API's answer: it takes no cookie


HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_a_browser_at_an_unknown_address_gets_a_page_that_says_so(
    played: Fleet, browser: httpx.AsyncClient
) -> None:
    stranger = await browser.get("/nothing?a=b", headers=HTML)
    assert (stranger.status_code, stranger.headers["location"]) == (303, "/signin?next=%2Fnothing%3Fa%3Db")
    await sign_in(browser, await operator_token(played.service, Role.READ))
    for path in ("/nothing", "/docs/nothing", "/nodes/none/nothing", "/web/nothing"):
        answer = await browser.get(path, headers=HTML)
        assert (answer.status_code, answer.headers["content-type"][:9]) == (404, "text/html"), path
        assert "There is no such page" in answer.text
        assert '<a href="/">Overview</a>' in answer.text


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/nodes"])
async def test_the_api_answers_a_browser_with_a_problem_document(path: str, admin: httpx.AsyncClient) -> None:
    assert problem(await admin.get(path, headers=HTML))["code"] == "UNAUTHORIZED"


async def test_a_form_sent_to_an_unknown_address_gets_the_answer_of_the_api(admin: httpx.AsyncClient) -> None:
    assert problem(await admin.post("/nothing", data={}, headers=HTML))["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
async def test_a_form_of_another_page_does_nothing(
    origin: str | None, played: Fleet, admin: httpx.AsyncClient
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    fields = {"csrf": await csrf_of(admin)}
    refused = await admin.post("/web/signout", data=fields, headers=headers)
    assert (refused.status_code, "came from another page" in refused.text) == (403, True)
    assert played.service.tokens.authenticate(session_of(admin) or "") is not None


@pytest.mark.parametrize("csrf", ["", "0" * 64, "é"])
async def test_a_form_without_its_secret_does_nothing(
    csrf: str, played: Fleet, admin: httpx.AsyncClient
) -> None:
    refused = await post(admin, "/web/signout", {}, csrf=csrf)
    assert (refused.status_code, "not valid any more" in refused.text) == (403, True)
    assert played.service.tokens.authenticate(session_of(admin) or "") is not None


async def test_the_secret_of_one_session_is_of_no_use_to_another(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    before = await csrf_of(admin)
    admin.cookies.clear()
    await sign_in(admin, await operator_token(played.service, Role.ADMIN))
    assert (await post(admin, "/web/signout", {}, csrf=before)).status_code == 403


async def test_a_form_that_is_too_large_or_none_is_refused(admin: httpx.AsyncClient) -> None:
    large = await post(admin, "/web/signout", {"reason": "r" * MAX_FORM_BYTES}, csrf=await csrf_of(admin))
    assert large.status_code == 413
    as_json = await admin.post("/web/signout", json={}, headers=origin_of(admin))
    assert as_json.status_code == 415
    broken = await admin.post(
        "/web/signout",
        content=b"a=%ff",
        headers={**origin_of(admin), "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert broken.status_code == 400


async def test_another_host_is_refused(admin: httpx.AsyncClient) -> None:
    for path in ("/nodes", "/signin"):
        refused = await admin.get(path, headers={"Host": "evil.example"})
        assert (refused.status_code, "not called" in refused.text) == (403, True)


async def test_the_script_is_answered_with_a_status_where_a_person_is_led_to_the_sign_in(
    browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/web/session", "/web/stream?page=nodes"):
        assert (await browser.get(path)).status_code == 401
    assert not logged(caplog, "operator_unauthorized")
    browser.cookies.set(cookie_of(browser), "gpus_00000000_unknown")
    with caplog.at_level(logging.WARNING):
        assert (await browser.get("/web/session")).status_code == 401
        await browser.get("/nodes")
    assert len(logged(caplog, "operator_unauthorized")) == 1


async def test_signing_out_of_a_session_that_has_ended_leads_to_the_sign_in(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    csrf = await csrf_of(admin)
    (session,) = (one for one in played.service.tokens.all() if one.kind == "session")
    await played.service.tokens.revoke(session.token_id)
    answer = await post(admin, "/web/signout", {}, csrf=csrf)
    assert (answer.status_code, answer.headers["location"]) == (303, "/signin?ended=1")


async def test_names_that_nodes_choose_are_shown_and_never_run(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    hostile = '<script>alert(1)</script>"onmouseover="x'
    machine = Machine(hostile, gpu='<img src=x onerror="y">', count=1, labels={"<em>": '"><s>'})
    machine.models = ("<svg/onload=z>",)
    await played.join(machine)
    await played.service.drain(machine.node_id, reason="<u>why</u>")
    for path in ("/", "/nodes", f"/nodes?q={'%3Cscript%3E'}", f"/nodes/{machine.node_id}"):
        text = (await admin.get(path)).text
        for made in ("<script>", "<img src=x", "<svg/onload", "<u>", '"onmouseover="', "<em>", '"><s>'):
            assert made not in text, path


async def test_names_turn_no_text_around_and_hide_nothing(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = Machine("evil\u202egpj.exe", gpu="H\u2066100\u0007", count=1)
    machine.models = ("model\u200b\u202d",)
    await played.join(machine)
    await played.service.drain(machine.node_id, reason="5\u00a0000 \u20ac \u202etxet")
    for path in ("/", "/nodes", f"/nodes/{machine.node_id}", "/events", f"/nodes/{machine.node_id}/remove"):
        text = (await admin.get(path)).text
        assert not {"\u202e", "\u2066", "\u0007", "\u200b", "\u202d"} & set(text), path
    text = (await admin.get(f"/nodes/{machine.node_id}")).text
    assert "evil\ufffdgpj.exe" in text
    assert "5\u00a0000 \u20ac \ufffdtxet" in text


DEEP = urlsafe_b64encode(b"[" * 700).decode()
MANY = "9" * 5000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/nodes?after={urlsafe_b64encode(b'[' * 30_000).decode()}", 400),
        (f"/nodes?after={DEEP}", 400),
        (f"/jobs?after={MANY}.x", 200),
        (f"/events?before={MANY}", 200),
        ("/web/stream?page=nodes&order=unknown&after=broken", 400),
    ],
)
async def test_an_address_that_no_page_gave_is_no_fault_of_the_registry(
    path: str, status: int, admin: httpx.AsyncClient
) -> None:
    assert (await admin.get(path)).status_code == status


def test_a_serial_number_that_no_page_had_is_none() -> None:
    cache = PartCache()
    assert cache.had(f"{cache.boot}-{MANY}") == 0
    assert cache.had(f"{cache.boot}-12") == 12


async def test_a_page_that_fails_says_so_and_is_logged(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(played.service, "explain_node", fail)
    machine = await played.join(Machine("a"))
    answer = await admin.get(f"/nodes/{machine.node_id}")
    assert (answer.status_code, "failed to make this page" in answer.text) == (500, True)
    assert "a fault of ours" not in answer.text
