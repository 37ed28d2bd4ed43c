"""Grafana's model of a dashboard, as far as ours need it: panels in rows, written as JSON.

A dashboard names no data source: a variable does, which Grafana fills in. It has no id, so that an import
replaces nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SCHEMA_VERSION = 42
"""Of Grafana 12 and 13; an older one reads what it knows of it, and a newer one migrates it."""
COLUMNS = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED = "green", "orange", "red"

Steps = tuple[tuple[float | None, str], ...]
"""From which value on which colour; None for the lowest."""
Json = Mapping[str, object]

PLAIN: Steps = ((None, GREEN),)


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel."""

    title: str
    description: str
    kind: str = "timeseries"
    queries: tuple[Query, ...]
    unit: str = "short"
    steps: Steps = PLAIN
    most: float | None = None
    """The upper end of its axis, where there is one by nature."""
    width: int = 12
    height: int = 8
    stacked: bool = False
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Value → the word that is shown for it, and its colour."""
    hidden: tuple[str, ...] = ()
    """Labels that a table leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One dashboard: rows of panels under headings, and the variable that chooses what is shown."""

    name: str
    title: str
    description: str
    variable: tuple[str, str, str] | None = None
    """Name, label and query."""
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]

    @property
    def panels(self) -> Iterator[Panel]:
        """All panels, in order."""
        for _, panels in self.rows:
            yield from panels


def text(dashboard: Dashboard) -> str:
    """Write a dashboard as Grafana imports it."""
    return json.dumps(document(dashboard), indent=1, ensure_ascii=False) + "\n"


def document(dashboard: Dashboard) -> Json:
    """Return a dashboard in Grafana's own model."""
    return {
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["gpu-agent"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(_variables(dashboard))},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "GPU dashboards",
                "tags": ["gpu-agent"],
                "icon": "external link",
                "tooltip": "",
                "asDropdown": False,
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
            }
        ],
        "panels": list(_panels(dashboard)),
    }


def _variables(dashboard: Dashboard) -> Iterator[Json]:
    yield {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}
    if dashboard.variable is not None:
        name, label, query = dashboard.variable
        yield {
            "type": "query",
            "name": name,
            "label": label,
            "datasource": _SOURCE,
            "query": {"query": query, "refId": "A"},
            "refresh": 2,
            "sort": 7,
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }


def _panels(dashboard: Dashboard) -> Iterator[Json]:
    """Lay the panels out from left to right, each row under its heading."""
    number, y = 0, 0
    for heading, panels in dashboard.rows:
        number += 1
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": heading,
            "gridPos": place,
            "collapsed": False,
            "panels": [],
        }
        x, y, height = 0, y + 1, 0
        for panel in panels:
            number += 1
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> Json:
    is_table = panel.kind == "table"
    at_once = panel.kind != "timeseries"
    written: dict[str, object] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "instant": at_once,
                "range": not at_once,
                "format": "table" if is_table else "time_series",
            }
            for at, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }
    if is_table:
        hidden = dict.fromkeys(panel.hidden, True)
        written["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return written


def _field(panel: Panel) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    found: dict[str, object] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.kind == "timeseries":
        found |= {"min": 0, "custom": _curve(panel)}
    if panel.most is not None:
        found["max"] = panel.most
    if panel.words:
        words = {value: {"text": word, "color": colour} for value, (word, colour) in panel.words.items()}
        found["mappings"] = [{"type": "value", "options": words}]
    return found


def _curve(panel: Panel) -> Json:
    has_limits = len(panel.steps) > 1 and not panel.stacked
    return {
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if has_limits else "off"},
    }


def _options(panel: Panel) -> Json:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "timeseries":
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        case "stat":
            named = any(query.legend for query in panel.queries)
            return {"reduceOptions": last, "colorMode": "value", "textMode": "name" if named else "value"}
        case "bargauge":
            return {"reduceOptions": last, "orientation": "horizontal", "displayMode": "basic"}
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case _:
            raise ValueError(f"{panel.title}: no panel of the kind {panel.kind}")
