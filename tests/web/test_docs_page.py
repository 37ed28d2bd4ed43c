"""The page at /docs in a browser, against a registry with auth on."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.e2e.place import Place
from tests.programs import Registry
from tests.waiting import patience

pytest.importorskip("playwright", reason="playwright is not installed: `make setup` installs it")

from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = pytest.mark.web

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


@dataclass
class Opened:
    """A page at `/docs`, all that it requested, and all errors that the browser showed."""

    page: Page
    requested: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def sign_in(self, token: str) -> None:
        self.page.get_by_label("Operator token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()

    def route(self, method: str, path: str) -> Locator:
        """Open a route."""
        exact = self.page.get_by_text(path, exact=True)
        summary = self.page.locator("summary").filter(has=exact).filter(has_text=method)
        shown = self.page.locator("main > section > details").filter(has=summary)
        summary.click()
        return shown


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as running:
        yield Place(tmp_path_factory.mktemp("web"), running)


@pytest.fixture(scope="module")
def registry(place: Place) -> Registry:
    """A registry with auth on and one ready node."""
    registry = place.registry()
    place.agent(registry, "a", join_token=place.join_token(registry))
    place.await_ready(registry)
    return registry


@pytest.fixture
def opened(browser: Browser, registry: Registry) -> Iterator[Opened]:
    """The page at `/docs`, in a browser without a past."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(patience(10) * 1000)
    expect.set_options(timeout=patience(10) * 1000)
    opened = Opened(context.new_page())
    context.on("request", lambda request: opened.requested.append(request.url))
    context.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
    context.on("weberror", lambda error: opened.errors.append(str(error.error)))
    opened.page.goto(f"{registry.api}/docs")
    yield opened
    context.close()


@pytest.fixture
def signed_in(opened: Opened, place: Place) -> Opened:
    opened.sign_in(place.operator_token)
    expect(opened.page.locator("main > section > details")).not_to_have_count(0)
    return opened


def test_a_wrong_token_is_refused_in_words_and_the_next_one_may_be_right(
    opened: Opened, place: Place
) -> None:
    opened.sign_in("gpuo_00000000_" + "x" * 43)
    expect(opened.page.get_by_role("alert")).to_contain_text("token")
    expect(opened.page.locator("main > section > details")).to_have_count(0)
    assert ["401" in error for error in opened.errors] == [True]
    opened.sign_in(place.operator_token)
    expect(opened.page.get_by_role("button", name="Sign in")).to_be_hidden()
    expect(opened.page.locator("main > section > details")).not_to_have_count(0)


def test_the_page_shows_every_route_of_the_document(
    signed_in: Opened, place: Place, registry: Registry
) -> None:
    _, document = place.ask(registry, "GET", "/openapi.json")
    declared = {f"{method.upper()} {path}" for path, one in document["paths"].items() for method in one}
    shown = {
        f"{route.locator('.method').inner_text()} {route.locator('summary code').inner_text()}"
        for route in signed_in.page.locator("main > section > details").all()
    }
    assert shown == declared


def test_a_claim_made_on_the_page_is_a_claim_and_its_release_is_one(
    signed_in: Opened, place: Place, registry: Registry
) -> None:
    claim = signed_in.route("POST", "/v1/claims")
    claim.get_by_label("Body as JSON").fill(json.dumps({"job_id": "team/7", "gpu_count": 1}))
    claim.get_by_role("button", name="Send").click()
    expect(claim.get_by_role("status")).to_have_text("200 OK")
    expect(claim.locator("pre")).to_contain_text("claim_id")
    answer = json.loads(claim.locator("pre").inner_text())
    _, listed = place.ask(registry, "GET", "/v1/claims/team%2F7")
    assert (answer["claim_id"], answer["state"]) == (listed["claim_id"], "active")
    release = signed_in.route("DELETE", "/v1/claims/{job_id}")
    release.get_by_label("job_id").fill("team/7")
    release.get_by_role("button", name="Send").click()
    expect(release.get_by_role("status")).to_have_text("204 No Content")
    assert place.ask(registry, "GET", "/v1/claims")[1]["claims"] == []
    assert signed_in.errors == []


def test_the_example_of_a_body_is_one_that_the_registry_reads(signed_in: Opened) -> None:
    renewals = signed_in.route("POST", "/v1/claims/renew")
    body = {"claims": [{"job_id": ""}]}
    expect(renewals.get_by_label("Body as JSON")).to_have_value(json.dumps(body, indent=2))
    renewals.get_by_label("Body as JSON").fill(json.dumps(body).replace('""', '"job-1"'))
    renewals.get_by_role("button", name="Send").click()
    expect(renewals.locator("pre")).to_contain_text("CLAIM_NOT_FOUND")


def test_the_fields_that_a_body_needs_are_named(signed_in: Opened) -> None:
    fields = signed_in.route("POST", "/v1/claims").locator("form tbody tr")
    expect(fields.filter(has_text="job_id")).to_contain_text("job_id required")


def test_the_fields_of_bodies_and_answers_are_explained_inside_lists_too(signed_in: Opened) -> None:
    renewals = signed_in.route("POST", "/v1/claims/renew")
    renewals.get_by_text("Fields of the answer").click()
    for name in (
        "ClaimName",
        "RenewalResult",
        "ClaimView",
        "gpu_indices",
        "Seconds that a renewal gives it.",
    ):
        expect(renewals).to_contain_text(name)
    claim = signed_in.route("POST", "/v1/claims")
    expect(claim).to_contain_text("exclusive: whole GPUs, held by no other claim. memory: shared")
    expect(claim).not_to_contain_text("`")
    expect(signed_in.route("GET", "/v1/nodes")).to_contain_text("registering | ready | degraded")


def test_a_refusal_is_shown_in_words(signed_in: Opened) -> None:
    claim = signed_in.route("POST", "/v1/claims")
    claim.get_by_label("Body as JSON").fill(json.dumps({"job_id": "j", "gpus_count": 1}))
    claim.get_by_role("button", name="Send").click()
    expect(claim.get_by_role("status")).to_contain_text("422")
    expect(claim.locator("pre")).to_contain_text("did you mean `gpu_count`?")


def test_a_token_that_ends_is_replaced_and_what_was_typed_stays(
    opened: Opened, place: Place, registry: Registry
) -> None:
    made = place.ask(registry, "POST", "/v1/tokens", {"kind": "operator", "role": "read", "name": "r"})[1]
    opened.sign_in(made["token"])
    node = opened.route("GET", "/v1/nodes/{node_id}")
    node.get_by_label("node_id").fill("node-7")
    assert place.ask(registry, "DELETE", f"/v1/tokens/{made['token_id']}")[0] == 204
    node.get_by_role("button", name="Send").click()
    expect(node.get_by_role("status")).to_contain_text("401")
    expect(opened.page.get_by_role("alert")).to_contain_text("enter another one")
    opened.sign_in(place.operator_token)
    expect(opened.page.get_by_role("button", name="Sign in")).to_be_hidden()
    node.get_by_role("button", name="Send").click()
    expect(node.get_by_role("status")).to_contain_text("404")


def test_signing_in_while_no_registry_answers_says_so_and_keeps_the_token(
    opened: Opened, place: Place
) -> None:
    opened.page.context.set_offline(True)
    opened.sign_in(place.operator_token)
    expect(opened.page.get_by_role("alert")).to_contain_text("Does the registry run?")
    opened.page.context.set_offline(False)
    opened.page.get_by_role("button", name="Sign in").click()
    expect(opened.page.locator("main > section > details")).not_to_have_count(0)


def test_a_stream_is_shown_as_it_comes(signed_in: Opened, place: Place, registry: Registry) -> None:
    stream = signed_in.route("GET", "/v1/events")
    stream.get_by_role("button", name="Send").click()
    expect(stream.get_by_role("status")).to_have_text("200 OK")
    node_id = place.await_ready(registry)["node_id"]
    for verb in ("cordon", "uncordon"):
        assert place.ask(registry, "POST", f"/v1/nodes/{node_id}/{verb}", {})[0] == 200
        expect(stream.locator("pre")).to_contain_text(f"event: node_{verb}ed")
    assert signed_in.errors == []


def test_another_request_ends_the_stream_of_the_one_before(signed_in: Opened) -> None:
    workers = signed_in.route("GET", "/v1/endpoints")
    workers.get_by_label("accept").fill("text/event-stream")
    workers.get_by_role("button", name="Send").click()
    expect(workers.locator("pre")).to_contain_text("data: ")
    workers.get_by_label("accept").fill("application/json")
    workers.get_by_role("button", name="Send").click()
    expect(workers.locator("pre")).not_to_contain_text("data: ")
    expect(workers.get_by_role("status")).to_have_text("200 OK")
    assert signed_in.errors == []


def test_signing_in_shows_no_error_and_asks_no_other_host(signed_in: Opened, registry: Registry) -> None:
    for path in ("/v1/nodes", "/v1/queue", "/healthz"):
        route = signed_in.route("GET", path)
        route.get_by_role("button", name="Send").click()
        expect(route.get_by_role("status")).to_have_text("200 OK")
    assert signed_in.errors == []
    assert [url for url in signed_in.requested if not url.startswith(f"{registry.api}/")] == []


def test_the_token_is_in_the_memory_of_the_page_alone(signed_in: Opened) -> None:
    page = signed_in.page
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert page.context.cookies() == []
    assert page.evaluate("indexedDB.databases()") == []
    assert page.get_by_label("Operator token").input_value() == ""
    page.reload()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    expect(page.locator("main > section > details")).to_have_count(0)


def test_the_policy_is_strict(registry: Registry) -> None:
    with urllib.request.urlopen(f"{registry.api}/docs", timeout=patience(5)) as answer:  # noqa: S310 - ours
        stated = dict(
            one.strip().split(" ", 1) for one in answer.headers["Content-Security-Policy"].split(";")
        )
    assert stated == POLICY


def test_the_browser_enforces_the_policy(opened: Opened) -> None:
    page = opened.page
    page.evaluate(
        "() => { const script = document.createElement('script');"
        " script.textContent = 'window.injected = true'; document.body.append(script); }"
    )
    assert page.evaluate("window.injected === undefined")
    assert (
        page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', (error) => error.message)") != "sent"
    )
    assert [error for error in opened.errors if "Content Security Policy" not in error] == []
    assert {
        word for word in ("script-src", "connect-src") if any(word in error for error in opened.errors)
    } == {
        "script-src",
        "connect-src",
    }
