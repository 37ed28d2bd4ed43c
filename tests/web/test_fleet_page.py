"""The fleet page in a browser: signing in, live changes, a registry that restarts, telephones, axe."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Role
from gpu_agent.server.web import live
from tests.e2e.place import Place
from tests.programs import free_port
from tests.server.harness import until
from tests.server.web.fleet import Machine, ServedFleet, busy
from tests.waiting import patience

pytest.importorskip("playwright", reason="playwright is not installed: `make setup` installs it")

from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.web.chromium import DESK, SIZES
from tests.web.pictures import SCHEMES, paths_of

pytestmark = pytest.mark.web


@dataclass
class Visitor:
    """A browser without a past, all that it requested, and all errors that it showed."""

    context: BrowserContext
    page: Page
    requested: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def sign_in(self, url: str, token: str, path: str = "/") -> None:
        self.page.goto(url + path)
        self.page.get_by_label("Operator token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("navigation", name="Pages", exact=True)).to_be_visible()


Visiting = Callable[..., Visitor]


@pytest.fixture(scope="module")
def served() -> Iterator[ServedFleet]:
    with ServedFleet() as served:
        yield served


@pytest.fixture
def visiting(browser: Browser) -> Iterator[Visiting]:
    with ExitStack() as contexts:

        def visit(**options: Any) -> Visitor:  # noqa: ANN401 - the browser's own options
            context = browser.new_context(**{"viewport": DESK, **options})
            contexts.callback(context.close)
            context.set_default_timeout(patience(10) * 1000)
            expect.set_options(timeout=patience(10) * 1000)
            visitor = Visitor(context, context.new_page())
            context.on("request", lambda request: visitor.requested.append(request.url))
            context.on(
                "console", lambda said: visitor.errors.append(said.text) if said.type == "error" else None
            )
            context.on("weberror", lambda error: visitor.errors.append(str(error.error)))
            return visitor

        yield visit


@pytest.fixture
def admin(visiting: Visiting, served: ServedFleet) -> Visitor:
    visitor = visiting()
    visitor.sign_in(served.url, served.tokens[Role.ADMIN])
    return visitor


def test_a_wrong_token_is_refused_in_words_and_the_right_one_leads_back(
    visiting: Visiting, served: ServedFleet
) -> None:
    visitor = visiting()
    visitor.page.goto(f"{served.url}/nodes?show=free")
    visitor.page.get_by_label("Operator token").fill("gpuo_00000000_" + "x" * 43)
    visitor.page.get_by_role("button", name="Sign in").click()
    expect(visitor.page.get_by_role("alert")).to_contain_text("no operator token of this registry")
    visitor.page.get_by_label("Operator token").fill(served.tokens[Role.READ])
    visitor.page.get_by_role("button", name="Sign in").click()
    visitor.page.wait_for_url("**/nodes?show=free")
    assert visitor.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
    (cookie,) = visitor.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
    assert not [url for url in visitor.requested if served.tokens[Role.READ] in url]


def test_a_change_shows_without_a_reload_and_moves_no_row(admin: Visitor, served: ServedFleet) -> None:
    page = admin.page
    page.goto(f"{served.url}/nodes")
    machine = served.fleet.machines["l4-01"]
    row = page.locator(f"#n-{machine.node_id}")
    before = [one.get_attribute("id") for one in page.locator("#rows tr").all()]
    expect(page.locator("#live")).to_contain_text("Live")
    place = row.bounding_box()
    machine.figures[3] = {"health": "lost", "reasons": ["xid_79"]}
    served.do(served.fleet.beat(machine))
    expect(row.locator(".c-w")).to_contain_text("GPU 3 lost: the GPU has fallen off the bus")
    expect(row.locator("i.l")).to_have_count(1)
    expect(page.locator("#resort")).to_be_visible()
    assert row.bounding_box() == place
    assert [one.get_attribute("id") for one in page.locator("#rows tr").all()] == before
    expect(page.locator("#say")).to_contain_text("l4-01 is ready: GPU 3 lost")
    page.locator("#resort").click()
    expect(page.locator("#resort")).to_be_hidden()
    after = [one.get_attribute("id") for one in page.locator("#rows tr").all()]
    assert after.index(f"n-{machine.node_id}") < before.index(f"n-{machine.node_id}")
    machine.figures.clear()
    served.do(served.fleet.beat(machine, 3))
    expect(row.locator("i.l")).to_have_count(0)
    assert admin.errors == []


def test_what_changed_waits_until_it_is_asked_for(admin: Visitor, served: ServedFleet) -> None:
    page, node_id = admin.page, served.fleet.machines["l4-01"].node_id
    page.goto(served.url)
    changes = page.locator("section[aria-labelledby=h-ch]")
    expect(page.locator("#live")).to_contain_text("Live")
    before = changes.locator("li").all_inner_texts()
    for number in range(2):
        served.do(served.fleet.service.cordon(node_id, reason=f"not by itself {number}"))
    button = changes.get_by_role("button", name="2 new: show")
    expect(button).to_be_visible()
    assert changes.locator("li").all_inner_texts() == before
    button.click()
    expect(changes.locator("li").first).to_contain_text("not by itself 1")
    expect(button).to_be_hidden()
    served.do(served.fleet.service.uncordon(node_id))
    expect(changes.get_by_role("button", name="1 new: show")).to_be_visible()


@pytest.mark.parametrize("size", SIZES)
def test_the_figures_of_a_large_fleet_fit_their_tiles(
    size: str, visiting: Visiting, served: ServedFleet
) -> None:
    visitor = visiting(viewport=SIZES[size])
    page = visitor.page
    visitor.sign_in(served.url, served.tokens[Role.READ])
    page.locator(".fig b").evaluate_all("all => all.forEach(one => one.textContent = '12,345')")
    lines = page.locator(".fig > span").evaluate_all("all => all.map(one => one.offsetHeight / 20)")
    assert max(lines) <= 2, lines
    head = page.locator("header:has(> #resort)")
    head.evaluate("one => one.insertAdjacentHTML('beforeend', '<a href=/nodes>All 1,234</a>')")
    before = head.bounding_box()
    page.locator("#resort").evaluate("one => one.hidden = false")
    assert head.bounding_box() == before
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_job_that_passes_another_in_the_queue_moves_no_row(visiting: Visiting) -> None:
    with ServedFleet(populated=False) as served:
        machine = Machine("gpu-7", count=1)
        served.do(served.fleet.join(machine))
        served.do(served.fleet.claim("first", machine, gpu_count=1))
        _wait(served, Job(job_id="patient", gpu_count=1, wait_seconds=600))
        visitor = visiting()
        visitor.sign_in(served.url, served.tokens[Role.READ])
        rows = visitor.page.locator(".qs tbody tr")
        expect(visitor.page.locator("#live")).to_contain_text("Live")
        _wait(served, Job(job_id="urgent", gpu_count=1, priority=9, wait_seconds=600))
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text(re.compile(r"^\s*2\s*patient"))
        visitor.page.get_by_role("button", name="Queue changed: show").click()
        expect(rows).to_have_text([re.compile(r"^\s*1\s*urgent"), re.compile(r"^\s*2\s*patient")])
        expect(visitor.page.locator("#waiting-show")).to_have_count(0)
        assert visitor.errors == []


def _wait(served: ServedFleet, job: Job) -> None:
    async def ask() -> None:
        before = served.fleet.service.waiting_jobs
        served.fleet.wait_for(job)
        await until(lambda: served.fleet.service.waiting_jobs > before, what="the job waits")

    served.do(ask())


def test_the_page_of_a_node_that_is_removed_says_so_and_what_to_do(visiting: Visiting) -> None:
    with ServedFleet(populated=False) as served:
        gone, stays = (Machine(name, count=1) for name in ("gpu-7", "gpu-8"))
        for machine in (gone, stays):
            served.do(served.fleet.join(machine))
        visitor = visiting()
        page = visitor.page
        visitor.sign_in(served.url, served.tokens[Role.ADMIN], f"/nodes/{gone.node_id}")
        listed = visitor.context.new_page()
        listed.goto(f"{served.url}/nodes")
        for one in (page, listed):
            expect(one.locator("#live")).to_contain_text("Live")
        served.do(served.fleet.service.remove(gone.node_id, reason="sold", by="ana"))
        expect(page.get_by_role("heading", level=1)).to_have_text("gpu-7 is no node any more")
        page.reload()
        expect(page.locator("main")).to_contain_text("removed: sold (by ana). Its machine comes back when")
        assert not _judge(page)
        page.get_by_role("link", name="Its events").click()
        expect(page.locator("#rows tr").first).to_contain_text("removed: sold (by ana)")
        expect(listed.locator(f"#n-{gone.node_id}")).to_have_text(f"{gone.node_id} was removed")
        heights = [listed.locator(f"#n-{one.node_id}").bounding_box() for one in (gone, stays)]
        assert heights[0] is not None
        assert heights[1] is not None
        assert heights[0]["height"] == heights[1]["height"]


def test_a_label_is_as_wide_as_others_however_long_it_is(visiting: Visiting) -> None:
    with ServedFleet(populated=False) as served:
        machine = Machine("gpu-7", count=1, labels={"zone": "a" * 1000, "rack": "7"})
        served.do(served.fleet.join(machine))
        for size in SIZES.values():
            visitor = visiting(viewport=size)
            visitor.sign_in(served.url, served.tokens[Role.READ], f"/nodes/{machine.node_id}")
            label = visitor.page.get_by_role("link", name="zone=a")
            box = label.bounding_box()
            assert box is not None
            assert box["width"] <= 240
            assert box["height"] <= 24
            assert label.get_attribute("title") == f"zone={'a' * 1000}"
            assert visitor.page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_a_page_beyond_the_limit_says_so_and_is_not_loaded_again_and_again(
    admin: Visitor, served: ServedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = admin.page
    monkeypatch.setattr(live, "MOST_STREAMS_OF_ONE", 0)
    page.goto(f"{served.url}/nodes")
    expect(page.locator("#lost")).to_contain_text("Too many pages are open: close one.")
    assert admin.requested.count(f"{served.url}/nodes") == 1
    monkeypatch.undo()
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#live")).to_contain_text("Live · ")
    expect(page.locator("#lost")).to_be_hidden()


def test_a_cell_that_has_the_focus_is_left_alone(admin: Visitor, served: ServedFleet) -> None:
    page, machine = admin.page, served.fleet.machines["l4-01"]
    page.goto(f"{served.url}/nodes")
    link = page.locator(f"#n-{machine.node_id} a.one")
    link.focus()
    served.do(served.fleet.service.cordon(machine.node_id, reason="while it is read"))
    expect(page.locator(f"#n-{machine.node_id} .c-w")).to_contain_text("while it is read")
    assert page.evaluate("document.activeElement.textContent") == "l4-01"
    served.do(served.fleet.service.uncordon(machine.node_id))


def test_a_page_that_loads_itself_again_keeps_what_was_typed_and_says_who_is_signed_in(
    visiting: Visiting, served: ServedFleet
) -> None:
    visitor = visiting(viewport=SIZES["telephone"])
    page = visitor.page
    visitor.sign_in(served.url, served.tokens[Role.READ], "/nodes")
    page.get_by_text("More filters").click()
    page.locator("#filter [name=status]").select_option("offline")
    page.locator("#filter [name=label]").fill("zone=a")
    other = visitor.context.new_page()
    other.goto(served.url)
    other.get_by_role("button", name="Sign out").click()
    visitor.page = other
    visitor.sign_in(served.url, served.tokens[Role.ADMIN])
    with page.expect_response(f"{served.url}/nodes"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator(".who span").first).to_have_text("ann (admin)")
    expect(page.locator("#filter [name=status]")).to_have_value("offline")
    expect(page.locator("#filter [name=label]")).to_have_value("zone=a")
    expect(page.locator("#filter [name=label]")).to_be_focused()
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#h-n")).to_contain_text("of 12 nodes")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_without_the_script_pages_filters_and_forms_work(visiting: Visiting, served: ServedFleet) -> None:
    visitor = visiting(java_script_enabled=False)
    visitor.sign_in(served.url, served.tokens[Role.READ], "/nodes")
    page = visitor.page
    page.get_by_label("Text").fill("h100")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#h-n")).to_have_text("4 of 12 nodes")
    page.get_by_role("link", name="Free", exact=True).click()
    assert "q=h100" in page.url
    assert "sort=free" in page.url
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_session_that_ends_leads_to_the_sign_in_and_back(visiting: Visiting, served: ServedFleet) -> None:
    tokens = served.fleet.service.tokens
    made = served.do(tokens.create_operator(Role.READ, name="ana"))
    visitor = visiting()
    visitor.sign_in(served.url, getattr(made, "token", ""), "/nodes?sort=free")
    expect(visitor.page.locator("#live")).to_contain_text("Live")
    served.do(tokens.revoke(made.token_id))  # type: ignore[union-attr]
    expect(visitor.page.get_by_role("alert")).to_contain_text("Your session has ended")
    visitor.page.get_by_label("Operator token").fill(served.tokens[Role.READ])
    visitor.page.get_by_role("button", name="Sign in").click()
    visitor.page.wait_for_url("**/nodes?sort=free")


def test_names_that_nodes_choose_run_nothing(visiting: Visiting) -> None:
    with ServedFleet(populated=False) as empty:
        visitor = visiting()
        visitor.sign_in(empty.url, empty.tokens[Role.ADMIN])
        expect(visitor.page.get_by_text("No node has registered yet")).to_be_visible()
        hostile = Machine("<img src=x onerror='window.ran=1'>", "<script>window.ran=1</script>", 2)
        empty.do(empty.fleet.join(hostile))
        hostile.figures[0] = busy(50)
        visitor.page.goto(f"{empty.url}/nodes")
        empty.do(empty.fleet.service.cordon(hostile.node_id, reason="<svg onload='window.ran=1'>"))
        expect(visitor.page.locator("#rows .c-w")).to_contain_text("<svg onload=")
        visitor.page.goto(f"{empty.url}/nodes/{hostile.node_id}")
        expect(visitor.page.get_by_role("heading", level=1)).to_have_text(hostile.hostname)
        assert visitor.page.evaluate("window.ran === undefined")
        assert visitor.errors == []


def test_every_page_fits_passes_axe_and_asks_no_other_host(visiting: Visiting, served: ServedFleet) -> None:
    visitor = visiting()
    visitor.page.goto(served.url)
    found = {"signin": _judge_all(visitor.page)}
    too_wide: dict[str, int] = {}
    visitor.sign_in(served.url, served.tokens[Role.ADMIN])
    for name, path in paths_of(served).items():
        visitor.page.set_viewport_size(DESK)
        visitor.page.goto(served.url + path)
        if visitor.page.locator("[data-live]").count():
            expect(visitor.page.locator("#live")).to_contain_text("Live")
        found[name] = _judge_all(visitor.page)
        too_wide |= {f"{name} {size}": wide for size, wide in _too_wide(visitor.page).items()}
    assert too_wide == {}
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert [url for url in visitor.requested if not url.startswith(f"{served.url}/")] == []
    assert visitor.errors == []


def test_a_screen_reader_gets_a_name_of_every_table_and_action_in_order(
    admin: Visitor, served: ServedFleet
) -> None:
    """What the browser's accessibility tree says: the nearest to a screen reader that runs here."""
    for name, path in paths_of(served).items():
        admin.page.goto(served.url + path)
        said = admin.page.locator("body").aria_snapshot()
        levels = [int(one) for one in re.findall(r"heading .*\[level=(\d)\]", said)]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(after - before <= 1 for before, after in pairwise(levels)), name
        assert not re.search(r"- (table|button|link|textbox|combobox|searchbox)(:|$)", said, re.MULTILINE), (
            name
        )
        assert not re.search(r'columnheader(:|$)|columnheader ""', said, re.MULTILINE), name
        assert not re.search(r"[?\N{MULTIPLICATION SIGN}] (l40s|unknown|lost|GPU)", said), name
    assert admin.page.locator("#say[aria-live=polite]").count() == 1


def test_a_registry_that_restarts_under_an_open_page_is_said_and_recovered_from(
    visiting: Visiting, tmp_path: Path
) -> None:
    with ExitStack() as running:
        place, ports = Place(tmp_path, running), (free_port(), free_port())
        registry = place.registry("--store", "sqlite", node_port=ports[0], operator_port=ports[1])
        place.agent(registry, "a", join_token=place.join_token(registry))
        node_id = place.await_ready(registry)["node_id"]
        visitor = visiting()
        page = visitor.page
        visitor.sign_in(registry.api, place.operator_token, "/nodes")
        row = page.locator(f"#n-{node_id}")
        expect(row).to_contain_text("ready")
        expect(page.locator("#live")).to_contain_text("Live")
        registry.end()
        expect(page.locator("#lost")).to_be_visible()
        expect(page.locator("#lost")).to_contain_text("The registry has not answered since")
        expect(page.locator("#live")).to_contain_text("Not live")
        expect(row).to_contain_text("ready")
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("#lost-next")).to_contain_text("Next try in")
        again = place.registry("--store", "sqlite", node_port=ports[0], operator_port=ports[1])
        place.await_ready(again)
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("#live")).to_contain_text("Live · ")
        assert place.ask(again, "POST", f"/v1/nodes/{node_id}/cordon", {"reason": "seen live"})[0] == 200
        expect(row).to_contain_text("seen live")
        assert page.url == f"{registry.api}/nodes"


def _too_wide(page: Page) -> dict[str, int]:
    """How wide a page is on each screen that it does not fit."""
    widths = {}
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        widths[size] = page.evaluate("document.documentElement.scrollWidth")
    return {size: width for size, width in widths.items() if width > SIZES[size]["width"]}


def _judge_all(page: Page) -> list[str]:
    """The violations on every screen; those of contrast in the dark too, for colours change nothing else."""
    faults = []
    for size, viewport in SIZES.items():
        page.set_viewport_size(viewport)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            only = ["color-contrast"] if scheme == "dark" else []
            faults += [f"{size} {scheme} {fault}" for fault in _judge(page, *only)]
    page.emulate_media(color_scheme=None)
    return faults


def _judge(page: Page, *rules: str) -> list[str]:
    """The violations that axe finds, by these rules or by all, each with the first element that has it."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    report = page.evaluate("only => axe.run(only.length ? {runOnly: only} : {})", list(rules))
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in report["violations"]]
