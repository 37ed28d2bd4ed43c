"""The page `/events`: what happened? The newest first; new ones wait until they are asked for."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

from starlette.responses import Response

from gpu_agent.server.event_log import EventFilter
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.event_lines import EventLine, event_line
from gpu_agent.server.web.live import LiveView, Part
from gpu_agent.server.web.rendering import render
from gpu_agent.server.web.visit import PageRoute, Visit
from gpu_agent.store.base import RECENT_EVENTS
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import SENTENCES, is_warning

PAGE_EVENTS = 100
MOST_SEARCHED = 20_000
"""So many events a text is looked for in; more are not stored."""

_PAGE = "events"
_ROW = "e-"
_FILTERS = ("q", "node", "event", "level", "since")
_SPANS = {"600": "10 min", "3600": "1 h", "21600": "6 h", "86400": "24 h"}
"""Seconds back, and their words."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the filters of the address ask for."""

    log: EventFilter
    text: str
    """In lower case; empty for any."""
    unknown_node: bool
    """Whether the filter names a node that there is not, nor was."""


async def show(visit: Visit) -> Response:
    """Show the newest events that match the filters, or those before one."""
    wanted, before = _wanted(visit), _number(visit.query.get("before"))
    found = list(islice(_events(visit.registry, wanted, before=before), PAGE_EVENTS + 1))
    shown = found[:PAGE_EVENTS]
    filters = {name: visit.query.get(name, "") for name in _FILTERS}
    view = live(visit) if before is None else None
    return visit.render(
        "events.html",
        page=_PAGE,
        live=view,
        lines=[(f"{_ROW}{one.id}", is_warning(one), event_line(visit.registry, one)) for one in shown],
        older=shown[-1].id if len(found) > PAGE_EVENTS else None,
        is_later_page=before is not None,
        newer=None if before is None or not shown else _page_before(visit.registry, wanted, shown[0].id or 0),
        fresh="" if view is None else visit.part_html(_fresh(visit, _newest(shown), 0)),
        nothing_yet=not visit.registry.event_log.last_id,
        filters=filters,
        is_filtered=any(filters.values()),
        events=sorted(SENTENCES.keys() | {"node_status_changed"}),
        spans=_SPANS,
        stored=RECENT_EVENTS,
    )


def _page_before(registry: RegistryService, wanted: _Wanted, newest: int) -> int | None:
    """Return the id before which the page begins that ends just behind an event; None for the first page."""
    later = deque(_events(registry, wanted, before=None, after=newest), maxlen=PAGE_EVENTS + 1)
    return later[0].id if len(later) > PAGE_EVENTS else None


def live(visit: Visit) -> LiveView:
    """Return what changes on the page: how many events came since, and no row."""
    wanted = _wanted(visit)
    matches, later = _Matches(), dict[int, _Matches]()

    def order() -> tuple[str, ...]:
        """Return the newest event alone: what came later is counted, and is no change of order."""
        matches.look(visit.registry, wanted)
        return (f"{_ROW}{matches.newest}",) if matches.newest else ()

    def parts(rows: Sequence[str]) -> Iterator[Part]:
        newest = (_number(rows[0].removeprefix(_ROW)) if rows else 0) or 0
        found = later.setdefault(newest, _Matches(searched=newest))
        found.look(visit.registry, wanted)
        yield _fresh(visit, newest, found.count)

    return LiveView(_PAGE, (wanted.log, wanted.text), parts, order)


@dataclass(slots=True)
class _Matches:
    """What the filters find behind an event: each event is searched once, however many looks there are."""

    searched: int = 0
    """The id of the last event that was searched."""
    newest: int = 0
    count: int = 0

    def look(self, registry: RegistryService, wanted: _Wanted) -> None:
        """Search what the log has by now."""
        last_id = registry.event_log.last_id
        if last_id <= self.searched:
            return
        for event in _events(registry, wanted, before=None, after=self.searched):
            self.newest = max(self.newest, event.id or 0)
            self.count += 1
        self.searched = last_id


def _fresh(visit: Visit, newest: int, count: int) -> Part:
    """Return the button that shows how many came after an event."""
    href, shown = visit.address(before=None), min(count, PAGE_EVENTS + 1)
    html = partial(render, "_fresh.html", id="fresh", count=shown, most=PAGE_EVENTS, href=href)
    return Part("fresh", (shown, href), html, f"{newest} {href}")


def _events(
    registry: RegistryService, wanted: _Wanted, *, before: int | None, after: int = 0
) -> Iterator[RegistryEvent]:
    """Yield what the filters ask for, the newest first."""
    if wanted.unknown_node:
        return
    for event in islice(registry.event_log.search(wanted.log, before=before), MOST_SEARCHED):
        if (event.id or 0) <= after:
            return
        if not wanted.text or wanted.text in _text(event_line(registry, event)):
            yield event


def _text(line: EventLine) -> str:
    return f"{line.event} {line.name} {line.node_id or ''} {line.sentence}".lower()


def _wanted(visit: Visit) -> _Wanted:
    """Read the filters: an unknown word filters nothing."""
    given, node = visit.query, visit.query.get("node", "").strip()
    node_id = _node_id(visit.registry, node) if node else None
    seconds = given.get("since", "")
    log = EventFilter(
        node_id=node_id,
        events=frozenset({given["event"]} if given.get("event") in SENTENCES | _STATUS else ()),
        warnings_only=given.get("level") == "warning",
        since=visit.registry.clock.wall() - float(seconds) if seconds in _SPANS else None,
    )
    return _Wanted(log, given.get("q", "").strip().lower(), unknown_node=bool(node) and node_id is None)


_STATUS = {"node_status_changed": ""}


def _node_id(registry: RegistryService, named: str) -> str | None:
    """Return the id of a node that is named by it or by its hostname; None for one that is not known."""
    if registry.record(named) is not None or registry.event_log.history_of(named):
        return named
    figures = registry.fleet_view.totals.of_node.values()
    known = next((one.node_id for one in figures if one.hostname.lower() == named.lower()), None)
    if known is not None:
        return known
    # A removed node has no record: its events name it by its id.
    return next((one.node_id for one in registry.event_log.search() if one.node_id == named), None)


def _newest(shown: Sequence[RegistryEvent]) -> int:
    return (shown[0].id or 0) if shown else 0


def _number(text: str | None) -> int | None:
    with suppress(ValueError):
        return None if text is None else int(text)
    return None


ROUTES = (PageRoute("/events", show),)
LIVE = {_PAGE: live}
