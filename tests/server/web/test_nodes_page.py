"""The page of nodes and that of one node, as a browser without the script gets them."""

import re
from typing import Any

import httpx
import pytest

from gpu_agent.registry.tokens import Role
from gpu_agent.server.fleet_view import FleetView
from tests.server.api_harness import operator_token
from tests.server.harness import until
from tests.server.web.browsing import sign_in
from tests.server.web.fleet import Fleet, Machine, busy

LOST = {
    "health": "lost",
    "reasons": ["xid_79", "gpu_lost"],
    "utilization_percent": None,
    "memory_used_mb": None,
}


def rows_of(page: str) -> list[str]:
    return re.findall(r'<tr role="row" id="n-[^"]+".*?</tr>', page, re.DOTALL)


def names_in(page: str) -> list[str]:
    return [re.findall(r'<a class="one"[^>]*>([^<]+)</a>', row)[0] for row in rows_of(page)]


async def test_an_empty_fleet_says_how_to_add_a_node(admin: httpx.AsyncClient) -> None:
    for path in ("/", "/nodes"):
        text = (await admin.get(path)).text
        assert "No node has registered yet" in text
        assert "gpu-agent registry token create --uses 10 --out join.token" in text


async def test_the_most_urgent_node_comes_first_with_its_reason(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    await played.join(Machine("well", count=2))
    faulty = await played.join(Machine("faulty", count=2))
    faulty.figures[1] = LOST
    await played.beat(faulty)
    text = (await admin.get("/nodes")).text
    assert names_in(text) == ["faulty", "well"]
    first = rows_of(text)[0]
    assert "GPU 1 lost: the GPU has fallen off the bus (Xid 79)" in first
    assert '<i class="g f"' in first
    assert '<i class="g x l"' in first
    assert "2 GPUs: 1 free, 1 lost" in first
    assert "1<span" in text.split('id="nav-nodes"')[1][:60]


async def test_many_nodes_that_are_offline_for_one_reason_share_a_row_of_the_overview(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    async def leave(name: str) -> None:
        one = await played.join(Machine(name, count=1))
        assert one.node is not None
        await one.node.send({"type": "node_unregister", "node_id": one.node_id, "reason": "shutdown"})
        await until(lambda: played.status_of(one) == "offline", what=f"{name} is offline")

    async def listed() -> list[tuple[str, str]]:
        text = (await admin.get("/")).text.split("<tbody>")[1].split("</tbody>")[0]
        return re.findall(r'<a class="host" href="([^"]+)"[^>]*>([^<]+)</a>', text)

    faulty = await played.join(Machine("faulty", count=1))
    faulty.figures[0] = LOST
    await played.beat(faulty)
    for number in range(3):
        await leave(f"gone-{number}")
    assert [name for _, name in await listed()] == ["gone-0", "gone-1", "gone-2", "faulty"]
    await leave("gone-3")
    assert await listed() == [
        ("/nodes?status=offline&amp;reason=unregistered", "4 nodes offline"),
        (f"/nodes/{faulty.node_id}", "faulty"),
    ]
    text = (await admin.get("/")).text
    assert '<span class="what">the agent was stopped</span>' in text
    assert "The agent was stopped: start it again." in text
    gone = [f"gone-{number}" for number in range(4)]
    listed_there = (await admin.get("/nodes?status=offline&reason=unregistered")).text
    assert names_in(listed_there) == gone
    assert "<option selected>unregistered</option>" in listed_there
    assert names_in((await admin.get("/nodes?reason=heartbeat_timeout")).text) == []


async def test_what_an_offline_node_reported_last_is_not_shown_as_of_now(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1, cpu_percent=33.0))
    await played.claim("job", machine, gpu_count=1)
    machine.figures[0] = busy(50)
    await played.beat(machine)
    assert re.search(r'class="g c u5 m\d+"', (await admin.get("/nodes")).text)
    assert "last 15 minutes" in (await admin.get(f"/nodes/{machine.node_id}")).text
    assert machine.node is not None
    await machine.node.send({"type": "node_unregister", "node_id": machine.node_id, "reason": "shutdown"})
    await until(lambda: played.status_of(machine) == "offline", what="the node is offline")
    (row,) = rows_of((await admin.get("/nodes")).text)
    assert 'class="g c"' in row
    assert "33 %" not in row
    page = (await admin.get(f"/nodes/{machine.node_id}")).text
    assert "as it reported last, at <time" in page
    assert 'class="g c"' in page


async def test_a_check_that_found_the_same_of_several_gpus_has_one_row(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=3))
    assert machine.node is not None
    record = played.service.record(machine.node_id)
    assert record is not None
    found = [("fabric", "all is well", 3), ("link", "x16", 2), ("link", "x8 of x16", 3)]
    checks = [
        {"name": name, "scope": uuid, "ok": detail != "x8 of x16", "detail": detail, "at": 1.0}
        for name, detail, until_place in found
        for uuid in machine.uuids()[2 if detail == "x8 of x16" else 0 : until_place]
    ]
    checks.append({"name": "count", "scope": "node", "ok": True, "detail": "3 of 3", "at": 1.0})
    await machine.node.send({**machine.heartbeat(), "checks": checks})
    await until(lambda: record.checks, what="the checks are known")
    page = (
        (await admin.get(f"/nodes/{machine.node_id}")).text.split('id="node-checks"')[1].split("</table>")[0]
    )
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr>.*?</tr>", page) if "only shown" in row]
    assert [" ".join(row.split()) for row in rows] == [
        "passes: fabric every GPU all is well (only shown)",
        "passes: link GPUs 0, 1 x16 (only shown)",
        "fails: link GPU 2 x8 of x16 (only shown)",
        "passes: count 3 of 3 (only shown)",
    ]


async def test_filters_sort_and_pages_are_in_the_address(played: Fleet, admin: httpx.AsyncClient) -> None:
    await played.join(Machine("a-1", count=1, labels={"zone": "a"}, models=("m",)))
    await played.join(Machine("b-1", "NVIDIA H100", count=4, labels={"zone": "b"}))
    for query, expected in (
        ("", ["a-1", "b-1"]),
        ("?sort=free", ["b-1", "a-1"]),
        ("?q=B-", ["b-1"]),
        ("?label=zone%3Da", ["a-1"]),
        ("?gpu=h100", ["b-1"]),
        ("?model=m", ["a-1"]),
        ("?status=ready&show=free", ["a-1", "b-1"]),
        ("?status=nonsense&show=nonsense&sort=nonsense", ["a-1", "b-1"]),
        ("?show=attention", []),
        ("?rows=compact", ["a-1", "b-1"]),
    ):
        assert names_in((await admin.get(f"/nodes{query}")).text) == expected, query
    none = (await admin.get("/nodes?q=none")).text
    assert "No node matches these filters" in none
    assert "2 nodes are registered" in none
    assert 'class="nodes top-sticky compact"' in (await admin.get("/nodes?rows=compact")).text
    assert (await admin.get("/nodes?after=nonsense")).status_code == 400


async def test_a_list_of_more_than_a_page_goes_on_behind_its_last_row(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    for number in range(101):
        await played.join(Machine(f"n-{number}", count=1), ready=False)
    first = (await admin.get("/nodes?sort=hostname")).text
    assert names_in(first) == [f"n-{number}" for number in range(100)]
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None
    assert 'rel="prev"' not in first
    second = (await admin.get(following[1].replace("&amp;", "&"))).text
    assert names_in(second) == ["n-100"]
    assert "101–101 of 101" in second  # noqa: RUF001 - as the page writes it
    assert 'rel="prev" href="/nodes?sort=hostname">Previous<' in second


async def test_the_page_before_ends_where_this_one_begins(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = FleetView.page.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "limit", 2)
    for number in range(7):
        await played.join(Machine(f"n-{number}", count=1), ready=False)
    seen, path = [], "/nodes?sort=hostname"
    for rel in ("next", "next", "next", "prev", "prev", "prev"):
        text = (await admin.get(path)).text
        seen.append(names_in(text))
        path = re.findall(rf'rel="{rel}" href="([^"]+)"', text)[0].replace("&amp;", "&")
    assert seen == [
        [f"n-{number}" for number in range(first, min(7, first + 2))] for first in (0, 2, 4, 6, 4, 2)
    ]
    assert path == "/nodes?sort=hostname"


async def test_a_node_that_was_removed_says_so_with_the_next_step(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("gpu-7", count=1))
    await played.service.remove(machine.node_id, reason="sold", by="ana")
    for path in (f"/nodes/{machine.node_id}", f"/nodes/{machine.node_id}/drain"):
        gone = await admin.get(path)
        assert gone.status_code == 404
        for said in (
            "gpu-7 is no node any more",
            "removed: sold (by ana)",
            "<code>gpu-agent registry token create</code>",
            f'<a href="/events?node={machine.node_id}">Its events</a>',
        ):
            assert said in gone.text
    events = (await admin.get(f"/events?node={machine.node_id}")).text
    assert "removed: sold" in events
    assert "no node &#39;none&#39; is known" in (await admin.get("/nodes/none")).text


@pytest.mark.parametrize(
    ("role", "actions"),
    [
        (Role.READ, set()),
        (Role.OPERATE, {"drain", "cordon", "refresh", "gpus"}),
        (Role.ADMIN, {"drain", "cordon", "refresh", "remove", "gpus"}),
    ],
)
async def test_a_page_has_the_actions_that_the_role_allows(
    role: Role, actions: set[str], played: Fleet, browser: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1))
    await sign_in(browser, await operator_token(played.service, role))
    text = (await browser.get(f"/nodes/{machine.node_id}")).text
    found = set(re.findall(rf'data-dialog href="/nodes/{machine.node_id}/([a-z]+)', text))
    assert found == actions


async def test_a_nodes_page_says_what_is_wrong_and_what_to_do(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=2, models=("whisper",)))
    await played.claim("job-1", machine, gpu_count=2)
    machine.jobs = ("job-1",)
    machine.figures = {0: busy(), 1: LOST}
    await played.beat(machine)
    text = (await admin.get(f"/nodes/{machine.node_id}")).text
    for said in (
        "GPU 1 lost: the GPU has fallen off the bus (Xid 79)",
        "Drain the node, then reboot it.",
        '<dt>Affected</dt><dd><a class="mono" href="/jobs?job=job-1">job-1</a>',
        '<span class="mono">gpus</span>',
        "gpu_unavailable",
        "whisper",
        "565.57.01",
        "registering → ready",
        '<path d="M',
    ):
        assert said in text
    assert re.search(r"<strong>80</strong> <span class=\"dim\">%</span>", text)
    assert (await admin.get("/nodes/none")).status_code == 404


async def test_a_figure_that_is_unknown_is_a_dash_and_never_zero(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1))
    unknown = ("utilization_percent", "memory_used_mb", "temperature_c", "power_w")
    machine.figures = {0: dict.fromkeys(unknown)}
    await played.beat(machine)
    text = (await admin.get(f"/nodes/{machine.node_id}")).text
    row = re.findall(r'<tr role="row" id="gpu-0".*?</tr>', text, re.DOTALL)[0]
    assert row.count("–") == 4  # noqa: RUF001 - as the page writes it
    assert "<strong>0</strong>" not in row


class Boastful(Machine):
    """A node whose every name is as long as the protocol allows, and each of its GPUs another model."""

    def registration(self) -> dict[str, Any]:
        said = super().registration()
        for place, gpu in enumerate(said["hardware"]["gpus"]):
            gpu["name"] = f"{place:03}" + "'" * 1000
        return said


async def test_a_node_that_writes_long_names_makes_no_long_page(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = Boastful("boastful", count=64)
    for place in range(64):
        reasons = [f"{place}-{number}" + "'" * 900 for number in range(3)]
        machine.figures[place] = {"health": "degraded", "reasons": reasons}
    await played.join(machine, ready=False)
    await played.beat(machine, 2)
    pages = {path: (await admin.get(path)).text for path in ("/", "/nodes", f"/nodes/{machine.node_id}")}
    assert {path: len(text) for path, text in pages.items() if len(text) > 250_000} == {}
    assert "and 52 more" in pages["/"]  # models of GPUs
    assert "63-0" in pages[f"/nodes/{machine.node_id}"]
    assert "&#39;" * 250 not in pages["/nodes"]
