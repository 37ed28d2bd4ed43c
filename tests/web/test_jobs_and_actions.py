"""Jobs, events and actions in a browser: each action with its effect on a real agent, dialogs, new events."""
# ruff: noqa: F811 - a test names the fixtures that it imports

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.registry.tokens import Role
from tests.e2e.place import Place
from tests.programs import Registry
from tests.server.web.fleet import ServedFleet
from tests.web.test_fleet_page import (  # noqa: F401 - pytest finds fixtures by their names
    Visiting,
    Visitor,
    _judge,
    _judge_all,
    _too_wide,
    admin,
    served,
    visiting,
)

pytest.importorskip("playwright", reason="playwright is not installed: `make setup` installs it")

from playwright.sync_api import Page, expect

pytestmark = pytest.mark.web


def act(page: Page, link: str, button: str, **fields: str) -> None:
    """Open an action's dialog, fill it in, and send it."""
    page.get_by_role("link", name=link, exact=True).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("seen in a browser")
    for label, value in fields.items():
        dialog.get_by_label(label).fill(value)
    dialog.get_by_role("button", name=button).click()
    expect(dialog).to_be_hidden()


def shown(place: Place, registry: Registry, node_id: str) -> dict[str, Any]:
    found: dict[str, Any] = place.ask(registry, "GET", f"/v1/nodes/{node_id}")[1]
    return found


def test_each_action_has_its_effect_on_a_real_agent(visiting: Visiting, tmp_path: Path) -> None:
    with ExitStack() as running:
        place = Place(tmp_path, running)
        registry = place.registry()
        place.agent(registry, "a", join_token=place.join_token(registry))
        node = place.await_ready(registry)
        node_id, name = node["node_id"], node["hostname"]
        visitor = visiting()
        page = visitor.page
        visitor.sign_in(registry.api, place.operator_token, f"/nodes/{node_id}")
        act(page, "Cordon…", f"Cordon {name}")
        assert shown(place, registry, node_id)["cordoned"] == "seen in a browser"
        act(page, "Uncordon…", f"Uncordon {name}")
        assert shown(place, registry, node_id)["cordoned"] is None
        act(page, "Cordon… GPU 0", f"Cordon GPU 0 of {name}")
        assert "seen in a browser" in shown(place, registry, node_id)["gpus"][0]["cordoned"]
        act(page, "Uncordon… GPU 0", f"Uncordon GPU 0 of {name}")
        act(page, "Refresh…", f"Refresh {name}")
        assert place.ask(registry, "POST", "/v1/claims", {"job_id": "job-1", "gpu_count": 1})[0] == 200
        act(page, "Drain…", f"Drain {name}")
        assert shown(place, registry, node_id)["status"] == "draining"
        page.goto(f"{registry.api}/jobs")
        act(page, "Release… job-1", "Release the claim")
        page.goto(f"{registry.api}/nodes/{node_id}")
        expect(page.locator("#node-head")).to_contain_text("offline")
        act(page, "Resume…", f"Resume {name}")
        place.await_ready(registry)
        page.goto(f"{registry.api}/events?q=seen+in+a+browser")
        expect(page.locator("#rows tr")).to_have_count(8)
        page.goto(f"{registry.api}/nodes/{node_id}")
        act(page, "Remove…", f"Remove {name}", **{"to confirm": name})
        assert page.url == f"{registry.api}/nodes"
        assert not visitor.errors


def test_a_dialog_gives_the_focus_back_and_asks_for_a_reason(admin: Visitor, served: ServedFleet) -> None:
    machine = served.fleet.machines["h100-01"]
    page = admin.page
    page.goto(f"{served.url}/nodes/{machine.node_id}")
    opener = page.get_by_role("link", name="Cordon…", exact=True)
    opener.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Reason")).to_be_focused()
    dialog.get_by_role("button", name="Cordon h100-01").click()
    expect(dialog).to_be_visible()
    assert not _judge(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()


def test_new_events_wait_while_paused_and_come_by_themselves_else(
    admin: Visitor, served: ServedFleet
) -> None:
    page, service = admin.page, served.fleet.service
    node_id = served.fleet.machines["l4-01"].node_id
    page.goto(f"{served.url}/events?event=node_cordoned")
    expect(page.locator("#live")).to_contain_text("Live")
    page.get_by_role("button", name="Pause").click()
    for number in range(3):
        served.do(service.cordon(node_id, reason=f"while paused {number}"))
    expect(page.get_by_role("link", name="3 new: show")).to_be_visible()
    expect(page.locator("#main")).not_to_contain_text("while paused")
    page.get_by_role("link", name="3 new: show").click()
    expect(page.locator("#rows tr").first).to_contain_text("while paused 2")
    page.get_by_role("button", name="Paused: go on").click()
    served.do(service.cordon(node_id, reason="by itself"))
    expect(page.locator("#rows tr").first).to_contain_text("by itself")
    served.do(service.uncordon(node_id))


def test_pages_of_jobs_events_and_actions_fit_and_pass_axe(visiting: Visiting, served: ServedFleet) -> None:
    visitor = visiting()
    page = visitor.page
    visitor.sign_in(served.url, served.tokens[Role.ADMIN])
    node_id = served.fleet.machines["h100-02"].node_id
    for path in (
        "/jobs",
        "/jobs?gpus=8&gpu=H100",
        "/jobs?job=train-7b-042&ended=1",
        "/jobs?gpus=x",
        "/events",
        "/events?q=nothing-says-this",
        f"/nodes/{node_id}/drain",
        f"/nodes/{node_id}/remove",
        "/jobs/train-7b-042/release",
    ):
        page.goto(served.url + path)
        assert not _too_wide(page), path
        assert not _judge_all(page), path
    assert not visitor.errors
    assert all(one.startswith((served.url, "data:")) for one in visitor.requested)
