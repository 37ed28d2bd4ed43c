"""Lists of nodes as people look at them: filtered, in order, by pages, and kept while nodes change."""

import asyncio
from random import Random

import pytest

from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.fleet_totals import FleetTotals, node_figures
from gpu_agent.server.fleet_view import MOST_KEPT, CursorError, FleetView, NodeQuery, Show, Sort
from gpu_agent.server.views import NodeFilter
from gpu_agent.server.web.live import MOST_STREAMS
from gpu_agent.wire.codes import NodeStatus
from tests.registry.harness import Registry, hardware
from tests.registry.test_claims_at_random import World

QUERIES = (
    *(NodeQuery(sort=sort) for sort in Sort),
    *(NodeQuery(show=show, sort=Sort.HOSTNAME) for show in Show),
    NodeQuery(wanted=NodeFilter(statuses=frozenset({NodeStatus.READY})), sort=Sort.FREE),
    NodeQuery(wanted=NodeFilter(text="NODE-2"), sort=Sort.SEVERITY),
)


def fleet_of(*hostnames: str) -> Registry:
    registry = Registry(auth_off=True, gateways=False)
    for connection, hostname in enumerate(hostnames, start=1):
        labels = {"zone": "a" if connection % 2 else "b"}
        registry.arrive(
            None,
            connection,
            f"node-{connection}",
            hostname=hostname,
            labels=labels,
            hardware=hardware(1 + connection % 8),
        )
    return registry


async def refreshed(registry: Registry) -> FleetView:
    view = FleetView(registry.fleet, monotonic=lambda: registry.now)
    await view.refresh()
    return view


async def hostnames(view: FleetView, fleet: Fleet, query: NodeQuery, **page: object) -> list[str | None]:
    await view.refresh()
    found = view.page(query, **page)  # type: ignore[arg-type] # tests name parameters freely
    return [None if (one := fleet.node(node_id)) is None else one.hostname for node_id in found.node_ids]


async def test_hostnames_are_sorted_as_people_do() -> None:
    registry = fleet_of("gpu-10", "GPU-2", "gpu-1")
    view = await refreshed(registry)
    shown = await hostnames(view, registry.fleet, NodeQuery(sort=Sort.HOSTNAME))
    assert shown == ["gpu-1", "GPU-2", "gpu-10"]


@pytest.mark.parametrize("text", ["rack7", "RACK7", "node-2", "10.0.0.2"])
async def test_text_finds_hostnames_ids_and_addresses(text: str) -> None:
    registry = fleet_of("a", "b-rack7", "c")
    view = await refreshed(registry)
    query = NodeQuery(wanted=NodeFilter(text=text))
    assert await hostnames(view, registry.fleet, query) == ["b-rack7"]


@pytest.mark.parametrize(("text", "count"), [("h100", 3), ("zone", 0), ("b", 2)])
async def test_text_finds_gpus_and_values_of_labels(text: str, count: int) -> None:
    registry = fleet_of("x", "y", "b-3")
    view = await refreshed(registry)
    assert view.page(NodeQuery(wanted=NodeFilter(text=text))).matching == count


@pytest.mark.parametrize("sort", list(Sort))
async def test_pages_show_each_node_once_in_the_order_of_the_list(sort: Sort) -> None:
    registry = fleet_of(*[f"gpu-{number % 7}" for number in range(23)])
    view = await refreshed(registry)
    whole = view.page(NodeQuery(sort=sort)).node_ids
    paged: list[str] = []
    after = None
    for begin in range(0, 23, 5):
        page = view.page(NodeQuery(sort=sort), after=after, limit=5)
        assert (page.first, page.matching) == (begin, 23)
        paged += page.node_ids
        after = page.after
    assert after is None
    assert tuple(paged) == whole
    assert len(set(whole)) == 23


async def test_a_cursor_outlives_the_node_that_it_names() -> None:
    registry = fleet_of("a", "b", "c", "d")
    view = await refreshed(registry)
    query = NodeQuery(sort=Sort.HOSTNAME)
    after = view.page(query, limit=2).after
    registry.fleet._nodes.records.pop("node-2")
    registry.fleet.changed_nodes.add("node-2")
    assert await hostnames(view, registry.fleet, query, after=after) == ["c", "d"]


@pytest.mark.parametrize("after", ["x", "%", "W10", "WzFd", "eyJhIjoxfQ", "WzEsMiwzXQ", "\N{SNOWMAN}"])
async def test_a_cursor_that_no_page_gave_is_refused(after: str) -> None:
    view = await refreshed(fleet_of("a"))
    with pytest.raises(CursorError, match="leave it out"):
        view.page(NodeQuery(), after=after)


@pytest.mark.parametrize("seed", range(6))
async def test_lists_that_are_kept_are_what_new_ones_are_whatever_happens(seed: int) -> None:
    world = World(seed)
    fleet, now = world.registry.fleet, lambda: world.registry.now
    kept = FleetView(fleet, monotonic=now)
    dice = Random(seed)  # noqa: S311 - the same events for the same seed
    for _ in range(120):
        world.step()
        await kept.refresh()
        new = FleetView(fleet, monotonic=now)
        new.totals = totals_of(fleet)
        for query in QUERIES:
            if dice.random() < 1 / 2:
                assert kept.page(query) == new.page(query)


def totals_of(fleet: Fleet) -> FleetTotals:
    totals = FleetTotals()
    for record in fleet.nodes():
        totals.put(node_figures(record, fleet.gpu_statuses(record.node_id)))
    return totals


async def test_two_that_refresh_at_a_time_both_see_the_whole_fleet() -> None:
    registry = fleet_of(*map(str, range(300)))
    view = FleetView(registry.fleet)
    sizes: list[int] = []

    async def look() -> None:
        await view.refresh()
        sizes.append(len(view.totals.of_node))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(look())
        tasks.create_task(look())
    assert sizes == [300, 300]


async def test_the_version_grows_only_when_something_that_is_shown_changes() -> None:
    registry = fleet_of("a")
    view = await refreshed(registry)
    before = view.version
    registry.fleet.changed_nodes.add("node-1")
    await view.refresh()
    assert view.version == before
    for _ in range(10):
        registry.pass_time(2.0)
        registry.heartbeat(1, "node-1")
    await view.refresh()
    assert view.version > before
    assert view.totals.nodes == {NodeStatus.READY: 1}


async def test_a_list_that_nobody_asks_for_is_forgotten() -> None:
    registry = fleet_of("a")
    view = await refreshed(registry)
    view.page(NodeQuery())
    registry.now += 61.0
    view.page(NodeQuery(sort=Sort.FREE))
    assert len(view._lists) == 1


def test_the_list_of_each_open_page_is_kept() -> None:
    assert MOST_KEPT > MOST_STREAMS
