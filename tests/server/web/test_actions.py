"""What operators do on the page: each form asks for a reason, is checked, and has its effect once stored."""

import re
from html import unescape

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.wire.event_words import event_sentence
from tests.server.api_harness import operator_token
from tests.server.web.browsing import csrf_of, post, sign_in
from tests.server.web.fleet import Fleet, Machine

WHY = "a new fan"
ACTIONS = ("drain", "resume", "cordon", "uncordon", "refresh", "remove")


async def act(client: httpx.AsyncClient, path: str, **fields: str) -> httpx.Response:
    return await post(client, path, {"reason": WHY, **fields}, csrf=await csrf_of(client))


async def one(played: Fleet, hostname: str = "gpu-1") -> Machine:
    return await played.join(Machine(hostname, count=2))


def told(played: Fleet, machine: Machine) -> list[str]:
    return [event_sentence(found) for found in played.service.event_log.history_of(machine.node_id)]


async def test_a_drain_names_the_jobs_and_takes_a_deadline(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await one(played)
    await played.claim("train-7", machine, gpu_count=1)
    path = f"/nodes/{machine.node_id}/drain"
    form = (await admin.get(path)).text
    assert "1 job runs there: <code>train-7</code>" in form
    assert 'maxlength="500"' in form
    answer = await act(admin, path, deadline_seconds="3600")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/nodes/{machine.node_id}")
    node = played.service.node(machine.node_id)
    assert node is not None
    assert (node.status, node.drain is not None and node.drain.reason) == ("draining", WHY)
    assert f"drain requested: {WHY} (by ann)" in told(played, machine)


async def test_each_action_does_what_it_says_with_its_reason(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await one(played)
    base, service = f"/nodes/{machine.node_id}", played.service
    uuid = machine.uuids()[1]

    def cordons() -> tuple[bool, bool]:
        node = service.node(machine.node_id)
        assert node is not None
        return node.cordoned is not None, node.gpus[1].cordoned is not None

    assert (await act(admin, f"{base}/cordon")).status_code == 303
    assert cordons() == (True, False)
    assert (await act(admin, f"{base}/uncordon")).status_code == 303
    assert (await act(admin, f"{base}/gpus/{uuid}/cordon")).status_code == 303
    assert cordons() == (False, True)
    assert (await act(admin, f"{base}/gpus/{uuid}/uncordon")).status_code == 303
    assert cordons() == (False, False)
    assert (await act(admin, f"{base}/refresh")).status_code == 303
    assert machine.node is not None
    await machine.node.receive_type("node_control", command="refresh")
    assert (await act(admin, f"{base}/drain", deadline_seconds="")).status_code == 303
    assert (await act(admin, f"{base}/resume")).status_code == 303
    sentences = [line for line in told(played, machine) if WHY in line]
    assert len(sentences) == 7
    assert all(line.endswith("(by ann)") for line in sentences)


async def test_a_removal_asks_for_the_hostname(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await one(played)
    path = f"/nodes/{machine.node_id}/remove"
    refused = await act(admin, path, confirm="gpu-2")
    assert (refused.status_code, "Type gpu-1 to confirm." in refused.text) == (422, True)
    assert WHY in refused.text
    assert played.service.node(machine.node_id) is not None
    answer = await act(admin, path, confirm="gpu-1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/nodes")
    assert played.service.node(machine.node_id) is None


@pytest.mark.parametrize(
    ("hostname", "typed"), [("gpu-1 ", "gpu-1"), ("gpu\n1", "gpu 1"), ("gpu\u202e1", "")]
)
async def test_a_hostname_that_nobody_can_type_is_confirmed_as_it_shows_or_by_the_id(
    hostname: str, typed: str, played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await one(played, hostname)
    path = f"/nodes/{machine.node_id}/remove"
    shown = (await admin.get(path)).text
    assert f"<code>{machine.node_id}</code>" in shown
    assert f"Type <strong>{typed or machine.node_id}</strong> to confirm" in shown
    answer = await act(admin, path, confirm=typed or machine.node_id)
    assert (answer.status_code, answer.headers["location"]) == (303, "/nodes")


async def test_a_release_warns_that_the_job_goes_on(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await one(played)
    await played.claim("team/7", machine, gpu_count=1)
    path = "/jobs/team%2F7/release"
    form = (await admin.get(path)).text
    assert "The job itself is not stopped." in form
    claim_id = re.findall(r'name="claim_id" value="([^"]+)"', form)
    assert len(claim_id) == 1
    answer = await act(admin, path, claim_id=claim_id[0])
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
    assert played.service.claims() == []
    assert f"claim of job team/7 released: {WHY} (by ann)" in told(played, machine)


async def test_a_release_of_another_claim_than_the_one_shown_is_refused(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await one(played)
    await played.claim("train-7", machine, gpu_count=1)
    answer = await act(admin, "/jobs/train-7/release", claim_id="0" * 32)
    assert answer.status_code == 409
    assert len(played.service.claims()) == 1


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501])
async def test_an_action_without_a_fit_reason_is_asked_again(
    played: Fleet, admin: httpx.AsyncClient, reason: str
) -> None:
    machine = await one(played)
    answer = await act(admin, f"/nodes/{machine.node_id}/cordon", reason=reason)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    node = played.service.node(machine.node_id)
    assert node is not None
    assert node.cordoned is None


async def test_a_deadline_that_the_form_does_not_offer_is_refused(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await one(played)
    answer = await act(admin, f"/nodes/{machine.node_id}/drain", deadline_seconds="1e99")
    assert (answer.status_code, "Choose one of the deadlines." in answer.text) == (422, True)


@pytest.mark.parametrize(("role", "allowed"), [(Role.READ, ()), (Role.OPERATE, ACTIONS[:-1])])
async def test_a_role_may_do_what_it_allows_and_nothing_else(
    played: Fleet, browser: httpx.AsyncClient, role: Role, allowed: tuple[str, ...]
) -> None:
    machine = await one(played)
    await sign_in(browser, await operator_token(played.service, role))
    shown = (await browser.get(f"/nodes/{machine.node_id}")).text
    for action in ACTIONS:
        path = f"/nodes/{machine.node_id}/{action}"
        expected = 200 if action in allowed else 403
        assert (await browser.get(path)).status_code == expected, action
        if action not in allowed:
            assert (await act(browser, path, confirm="gpu-1")).status_code == 403, action
            assert path not in shown
    assert played.service.node(machine.node_id) is not None


async def test_an_action_without_the_secret_of_the_session_does_nothing(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await one(played)
    path = f"/nodes/{machine.node_id}/cordon"
    assert (await post(admin, path, {"reason": WHY})).status_code == 403
    assert (await post(admin, path, {"reason": WHY}, csrf="0" * 64)).status_code == 403
    foreign = {"Origin": "https://elsewhere.example"}
    sent = {"reason": WHY, "csrf": await csrf_of(admin)}
    assert (await admin.post(path, data=sent, headers=foreign)).status_code == 403
    node = played.service.node(machine.node_id)
    assert node is not None
    assert node.cordoned is None


async def test_a_hostile_hostname_and_a_hostile_job_are_text(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await one(played, "<script>alert(1)</script>")
    await played.claim("`<img src=x onerror=alert(1)>`", machine, gpu_count=1)
    for action in ("drain", "remove"):
        page = (await admin.get(f"/nodes/{machine.node_id}/{action}")).text
        assert "<script>alert" not in page
        assert "<img" not in page.split("<main")[1]
        assert "<script>alert(1)</script>" in unescape(page)


async def test_an_action_on_what_there_is_not_says_so(admin: httpx.AsyncClient) -> None:
    for path in ("/nodes/node-X/drain", "/nodes/node-X/gpus/GPU-1/cordon", "/jobs/job-X/release"):
        answer = await admin.get(path)
        assert answer.status_code == 404
        assert "There is no such" in answer.text
