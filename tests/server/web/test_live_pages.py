"""The stream of an open page: what changed, once for all viewers, for as long as the session is valid."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest

from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Role
from gpu_agent.runtime.address import bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web import live
from gpu_agent.server.web.live import LivePages, LiveView, Part, PartCache, order_mark
from gpu_agent.wire.fleet_documents import NodeGpuHistory
from tests.server.api_harness import operator_token
from tests.server.harness import LOOPBACK, until
from tests.server.sse import Heard, Parser, Stream
from tests.server.web.browsing import sign_in
from tests.server.web.fleet import Fleet, Machine, busy
from tests.waiting import patience


@asynccontextmanager
async def opened(client: httpx.AsyncClient, path: str = "/nodes") -> AsyncIterator[Stream]:
    """The stream of a page, as the script opens it."""
    page = (await client.get(path)).text
    found = re.search(
        r'data-live="(\w+)" data-since="([^"]*)"(?: data-node="([^"]*)")? data-order="(\w+)"', page
    )
    assert found is not None
    name, since, node_id, order = found.groups()
    query = dict(httpx.URL(path).params) | {"page": name, "since": since, "order": order}
    if node_id:
        query["node_id"] = node_id
    async with client.stream("GET", "/web/stream", params=query, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response, Parser())


async def next_parts(stream: Stream) -> Heard:
    return (await stream.until("parts"))[-1]


async def test_only_the_row_that_changed_is_sent(played: Fleet, admin: httpx.AsyncClient) -> None:
    changing = await played.join(Machine("changing", count=2))
    still = await played.join(Machine("still", count=2))
    async with opened(admin) as stream:
        assert (await stream.next()).name == "alive"
        changing.figures[1] = busy(64, 12000)
        await played.beat(changing)
        sent = (await next_parts(stream)).document
    assert set(sent) == {f"n-{changing.node_id}"}
    assert '<i class="g n u6 m5"' in sent[f"n-{changing.node_id}"]
    assert f"n-{still.node_id}" not in sent


async def test_a_change_that_nobody_can_see_sends_nothing(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await played.join(Machine("a", count=1))
    machine.figures[0] = busy(61, 12000)
    await played.beat(machine)
    async with opened(admin) as stream:
        await stream.next()
        machine.figures[0] = busy(62, 12010)
        await played.beat(machine)
        await played.service.cordon(machine.node_id, reason="a mark")
        sent = (await next_parts(stream)).document
    assert "a mark" in sent[f"n-{machine.node_id}"]


async def test_what_came_between_the_page_and_its_stream_is_sent(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1))
    page = (await admin.get("/nodes")).text
    since, order = re.findall(r'data-(?:since|order)="([^"]*)"', page)
    await played.service.cordon(machine.node_id, reason="meanwhile")
    query = {"page": "nodes", "since": since, "order": order}
    async with admin.stream("GET", "/web/stream", params=query, timeout=30) as response:
        stream = Stream(response, Parser())
        sent = await next_parts(stream)
    assert "meanwhile" in sent.document[f"n-{machine.node_id}"]
    async with admin.stream(
        "GET", "/web/stream", params=query, headers={"Last-Event-ID": sent.id or ""}, timeout=30
    ) as response:
        again = Stream(response, Parser())
        await again.next()
        await played.service.uncordon(machine.node_id)
        assert "meanwhile" not in str((await next_parts(again)).document)


async def test_a_page_of_another_process_gets_everything(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await played.join(Machine("a", count=1))
    query = {"page": "nodes", "since": "0badf00d-99", "order": "none"}
    async with admin.stream("GET", "/web/stream", params=query, timeout=30) as response:
        sent = (await next_parts(Stream(response, Parser()))).document
    assert {"nav-nodes", "nav-jobs", f"n-{machine.node_id}"} <= set(sent)


async def test_a_list_that_would_show_another_order_says_so_and_moves_no_row(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ORDER_SECONDS", 0.1)
    await played.join(Machine("a", count=1))
    last = await played.join(Machine("b", count=1))
    async with opened(admin) as stream:
        last.figures[0] = {"health": "lost", "reasons": ["gpu_lost"]}
        await played.beat(last)
        heard = await stream.until("order")
        changed = [one.document for one in heard if one.name == "parts"]
        assert any(f"n-{last.node_id}" in one for one in changed)
        new = await played.join(Machine("c", count=1))
        await played.service.cordon(last.node_id, reason="x")
        assert f"n-{new.node_id}" not in (await next_parts(stream)).document


async def test_a_stream_ends_with_its_session(played: Fleet, browser: httpx.AsyncClient) -> None:
    token = await operator_token(played.service, Role.READ)
    await sign_in(browser, token)
    async with opened(browser) as stream:
        await stream.next()
        await played.service.tokens.revoke(token.split("_")[1])
        await stream.end()


async def test_streams_end_when_the_server_stops(played: Fleet) -> None:
    listener = LOOPBACK.bind()
    server = ApiServer(played.service, listener, address=LOOPBACK)
    serving = asyncio.ensure_future(server.serve())
    base = f"http://{bound_address(listener)}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        await sign_in(client, await operator_token(played.service, Role.READ))
        async with opened(client) as stream:
            await stream.next()
            server.stop()
            await stream.end()
    await asyncio.wait_for(serving, patience(5))


async def test_one_operator_token_may_have_so_many_streams_by_all_its_sessions(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_STREAMS_OF_ONE", 1)
    token = await operator_token(played.service, Role.READ)
    await sign_in(admin, token)
    async with opened(admin) as stream:
        await stream.next()
        await sign_in(admin, token)
        assert (await admin.get("/web/stream?page=nodes")).status_code == 429
        assert (await admin.get("/web/session")).status_code == 429
        await sign_in(admin, await operator_token(played.service, Role.READ))
        assert (await admin.get("/web/session")).status_code == 204
    assert (await admin.get("/web/stream?page=none")).status_code == 404


async def test_the_page_of_a_node_changes_with_it(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await played.join(Machine("a", count=2))
    async with opened(admin, f"/nodes/{machine.node_id}") as stream:
        await stream.next()
        machine.figures[1] = {"health": "lost", "reasons": ["xid_79"]}
        await played.beat(machine)
        sent = (await next_parts(stream)).document
        while "gpu-1" not in sent:
            sent |= (await next_parts(stream)).document
    assert "fallen off the bus" in sent["node-finding"]
    assert "xid_79" in sent["gpu-1"]
    assert "gpu-0" not in sent


async def test_the_overview_counts_as_nodes_change(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await played.join(Machine("a", count=4))
    async with opened(admin, "/") as stream:
        await stream.next()
        await played.claim("job", machine, gpu_count=3)
        sent: dict[str, str] = {}
        while "fig-free" not in sent:
            sent |= (await next_parts(stream)).document
    assert "<b>1</b><span>of 4 GPUs free</span>" in sent["fig-free"]


async def test_what_changes_since_the_overview_was_loaded_is_counted_and_moves_no_row(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1))
    page = (await admin.get("/")).text
    until_id = int(re.findall(r'id="newer-show"[^>]* data-until="(\d+)"', page)[0])
    async with opened(admin, "/") as stream:
        await stream.next()
        for number in range(3):
            await played.service.cordon(machine.node_id, reason=f"seen later {number}")
        sent: dict[str, str] = {}
        newer: list[int] = []
        while len(newer) < 3:
            sent |= (await next_parts(stream)).document
            ids = re.findall(r'data-ids="([^"]*)"', sent.get("newer", ""))
            newer = [int(one) for one in "".join(ids).split() if int(one) > until_id]
    assert len(newer) == 3
    assert "seen later" not in "".join(html for part, html in sent.items() if not part.startswith("a-"))
    assert "seen later 2" in (await admin.get("/")).text


async def test_a_job_that_passes_others_in_the_queue_moves_no_row(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ORDER_SECONDS", 0.0)
    await played.claim("first", await played.join(Machine("a", count=1)), gpu_count=1)
    for number in (1, 2):
        played.wait_for(Job(job_id=f"job-{number}", gpu_count=1, wait_seconds=600))
        await until(lambda number=number: played.service.waiting_jobs == number, what="it waits")  # type: ignore[misc]

    def shown(text: str) -> list[tuple[str, str]]:
        return re.findall(r'<tr id="w-([^"]+)"><td class="r">(\d+)<', text)

    page = (await admin.get("/")).text
    assert shown(page) == [("job-1", "1"), ("job-2", "2")]
    assert "Queue changed" not in page
    sent: dict[str, str] = {}
    async with opened(admin, "/") as stream:
        await stream.next()
        played.wait_for(Job(job_id="urgent", gpu_count=1, priority=9, wait_seconds=600))
        while "Queue changed: show" not in sent.get("waiting-newer", ""):
            sent |= (await next_parts(stream)).document
        assert shown(sent["w-job-1"] + sent["w-job-2"]) == [("job-1", "2"), ("job-2", "3")]
        assert not [name for name in sent if name == "w-urgent"]
        played.waiting["job-1"].cancel()
        while "job-1 waits no more" not in sent["w-job-1"]:
            heard = await stream.until("parts")
            assert "order" not in {one.name for one in heard}  # the other list of the page is as it was
            sent |= heard[-1].document
    assert shown((await admin.get("/")).text) == [("urgent", "1"), ("job-2", "2")]


async def test_rows_of_models_keep_their_places_as_claims_come(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    larger = await played.join(Machine("a", "NVIDIA H100", count=4))
    await played.join(Machine("b", "NVIDIA L4", count=2))

    async def models() -> list[tuple[str, list[str]]]:
        rows = re.findall(r'<tr><th scope="row"><a href="/nodes\?gpu=.*?</tr>', (await admin.get("/")).text)
        return [(re.findall(r">([^<]+)</a>", row)[0], re.findall(r">(\d+)<", row)) for row in rows]

    h100, l4 = "NVIDIA H100", "NVIDIA L4"
    assert await models() == [(h100, ["4", "0", "0", "4", "4"]), (l4, ["2", "0", "0", "2", "2"])]
    await played.claim("job", larger, gpu_count=3)
    assert await models() == [(h100, ["1", "3", "0", "1", "4"]), (l4, ["2", "0", "0", "2", "2"])]


@pytest.mark.parametrize(("path", "letter"), [("/nodes", "n"), ("/", "a")])
async def test_a_row_whose_node_is_removed_stays_and_says_so(
    path: str, letter: str, played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("a", count=1))
    machine.figures[0] = {"health": "lost", "reasons": ["gpu_lost"]}
    await played.beat(machine)
    sent: dict[str, str] = {}
    async with opened(admin, path) as stream:
        await stream.next()
        await played.service.remove(machine.node_id)
        while "was removed" not in sent.get(f"{letter}-{machine.node_id}", ""):
            sent |= (await next_parts(stream)).document


async def test_viewers_of_two_nodes_get_nothing_while_nothing_changes(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    nodes = [await played.join(Machine(name, count=2)) for name in ("a", "b")]
    first, second = (f"/nodes/{one.node_id}" for one in nodes)
    async with opened(admin, first) as one, opened(admin, second) as other:
        assert (await one.next()).name == (await other.next()).name == "alive"
        heard = [message.name for message in await other.until("alive")]
    assert heard == ["alive"]


async def test_the_page_of_a_node_says_that_a_gpu_has_vanished_and_that_the_node_has(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ORDER_SECONDS", 0.1)
    machine = await played.join(Machine("a", count=2))
    assert machine.node is not None
    async with opened(admin, f"/nodes/{machine.node_id}") as stream:
        machine.count = 1
        await machine.node.send(machine.registration() | {"node_id": machine.node_id})
        await stream.until("order")
    async with opened(admin, f"/nodes/{machine.node_id}") as stream:
        await played.service.remove(machine.node_id)
        await stream.until("order")


async def test_a_look_at_a_node_reads_no_history_where_nothing_has_changed(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await played.join(Machine("a", count=2))
    reads = 0
    read = RegistryService.gpu_history

    def counted(service: RegistryService, node_id: str) -> NodeGpuHistory | None:
        nonlocal reads
        reads += 1
        return read(service, node_id)

    monkeypatch.setattr(RegistryService, "gpu_history", counted)
    async with opened(admin, f"/nodes/{machine.node_id}") as stream:
        await stream.until("alive")
        await stream.until("alive")
    assert reads == 1  # for all rows of the page


async def nothing() -> None:
    """Nothing to bring up to date."""


class Counted:
    """A page of one part, which counts how often it was rendered."""

    def __init__(self) -> None:
        self.look, self.renderings = 0, 0

    def view(self) -> LiveView:
        return LiveView("p", "key", lambda _: [Part("x", self.look, self.html)], lambda: ("x",))

    def html(self) -> str:
        self.renderings += 1
        return f"<p>{self.look}</p>"


async def test_a_part_is_rendered_once_per_change_for_all_viewers() -> None:
    counted, cache = Counted(), PartCache()
    refreshed = 0

    async def refresh() -> None:
        nonlocal refreshed
        refreshed += 1

    pages = LivePages(cache, refresh)
    streams = [
        pages.stream(counted.view(), since="", mark=order_mark(("x",)), token_id=None, is_valid=lambda: True)
        for _ in range(20)
    ]
    first = [(await anext(one), await anext(one)) for one in streams]
    assert all(b"alive" in alive and b"<p>0</p>" in parts for alive, parts in first)
    counted.look = 1
    async with asyncio.TaskGroup() as tasks:
        pieces = [tasks.create_task(anext(one)) for one in streams]
    assert all(b"<p>1</p>" in piece.result() for piece in pieces)
    assert counted.renderings == 2
    assert refreshed < 20
    pages.close()
    for one in streams:
        assert [piece async for piece in one] == []
    assert not pages._feeds
    assert not pages._open


async def test_open_pages_render_nothing_again_however_many_parts_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "_MOST_PARTS", 10)
    pages, rendered = LivePages(PartCache(), nothing), Counter[str]()

    def rows_of(page: int) -> LiveView:
        def render(row: str) -> str:
            rendered[row] += 1
            return row

        rows = tuple(f"n-{page}-{number}" for number in range(8))
        return LiveView("nodes", page, lambda _: [Part(row, 1, partial(render, row)) for row in rows])

    streams = [
        pages.stream(rows_of(page), since="", mark="", token_id=None, is_valid=lambda: True)
        for page in range(4)
    ]
    for one in streams:
        assert b"alive" in await anext(one)
        assert b"n-" in await anext(one)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(anext(one, b"")) for one in streams]
        await pages._next_look()
        await pages._next_look()
        pages.close()
    assert [one.result() for one in waiting] == [b""] * 4
    assert set(rendered.values()) == {1}


async def test_a_long_look_lets_other_tasks_run_and_loses_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SLICE_SECONDS", 0.0)
    cache, look = PartCache(), 0
    pages = LivePages(cache, nothing)

    def parts(_: Sequence[str]) -> list[Part]:
        return [Part(f"x{number}", look, lambda: f"<p>{look}</p>") for number in range(3)]

    view = LiveView("p", "key", parts)
    stream = pages.stream(view, since="", mark="", token_id=None, is_valid=lambda: True)
    opening = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not opening.done()
    look = 1  # while the look waits, another page renders the first part again
    cache.rendered(parts(())[0])
    await opening
    assert (await anext(stream)).count(b"<p>1</p>") == 3
    pages.close()


def test_rendered_parts_are_bounded_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MOST_CHARACTERS", 10_000)
    cache = PartCache()
    for number in range(50):
        cache.rendered(Part(f"x{number % 30}", number, lambda: "x" * 1000))
    assert cache.characters == 10_000
    assert len(cache._parts) == 10


async def test_made_up_marks_make_no_further_feeds() -> None:
    pages, counted = LivePages(PartCache(), nothing), Counted()
    streams = [
        pages.stream(counted.view(), since="", mark=f"made-up-{n}", token_id=None, is_valid=lambda: True)
        for n in range(5)
    ]
    for one in streams:
        await anext(one)
    assert len(pages._feeds) == 1
    pages.close()
    for one in streams:
        await one.aclose()


async def test_a_viewer_that_reads_slowly_gets_the_newest_state_alone() -> None:
    counted, cache = Counted(), PartCache()

    async def refresh() -> None:
        counted.look += 1

    pages = LivePages(cache, refresh)
    view = counted.view()
    slow = pages.stream(view, since="", mark="", token_id=None, is_valid=lambda: True)
    quick = pages.stream(view, since="", mark="", token_id=None, is_valid=lambda: True)
    await anext(slow)
    for _ in range(4):
        await anext(quick)
    piece = await anext(slow)
    assert f"<p>{counted.look}</p>".encode() in piece
    assert piece.count(b"event: parts") == 1
    pages.close()
    await slow.aclose()
    await quick.aclose()


async def test_a_viewer_who_leaves_while_it_looks_for_all_holds_nobody_up() -> None:
    counted, cache = Counted(), PartCache()

    async def refresh() -> None:
        counted.look += 1

    pages = LivePages(cache, refresh)
    first, second = (
        pages.stream(counted.view(), since="", mark="", token_id=None, is_valid=lambda: True)
        for _ in range(2)
    )
    for one in (first, second):
        await anext(one)
        await anext(one)
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(anext(first))
        waiting = tasks.create_task(anext(second))
        await until(lambda: pages._looking, what="one looks")
        looking.cancel()
        piece = await asyncio.wait_for(waiting, patience(5))
    assert b"<p>1</p>" in piece
    pages.close()
