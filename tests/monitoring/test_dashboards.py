"""Grafana's dashboards: written from their table, portable, explained, and understood by Prometheus."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpu_agent.node import metrics as node_metrics
from gpu_agent.server import metrics as server_metrics
from tests.monitoring.promtool import SUFFIXES, needs_promtool, promtool, without_labels
from tools.dashboards import DASHBOARDS, FOLDER, expressions
from tools.grafana import COLUMNS, Dashboard, text

EXPOSED = {one.name for one in node_metrics.METRICS} | {
    one.full_name for one in (*server_metrics.METRICS, *server_metrics.INSTANCE_METRICS)
}
OF_PROMETHEUS = {"ALERTS"}

each = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.name)


def filled(expr: str) -> str:
    """The expression as Grafana sends it, with everything chosen."""
    return expr.replace("$__rate_interval", "1m").replace("$instance", ".*")


def imported(dashboard: Dashboard) -> dict[str, Any]:
    """The file as Grafana reads it."""
    document: dict[str, Any] = json.loads((FOLDER / f"{dashboard.name}.json").read_text(encoding="utf-8"))
    return document


def everything_in(value: object) -> Iterator[Mapping[str, object]]:
    """All objects of a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from everything_in(one)


@each
def test_the_file_is_the_one_that_the_table_gives(dashboard: Dashboard) -> None:
    assert (FOLDER / f"{dashboard.name}.json").read_text(encoding="utf-8") == text(dashboard)


@each
def test_a_dashboard_names_no_data_source_and_no_id_of_its_own(dashboard: Dashboard) -> None:
    document = imported(dashboard)
    assert not {"id", "uid", "version", "__inputs"} & document.keys()
    sources = {one["uid"] for one in everything_in(document) if "uid" in one}
    assert sources == {"${datasource}"}
    assert [one["name"] for one in document["templating"]["list"] if one["type"] == "datasource"] == [
        "datasource"
    ]


@each
def test_every_panel_says_what_it_shows_has_a_unit_and_lies_on_no_other(dashboard: Dashboard) -> None:
    panels = imported(dashboard)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= COLUMNS
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
            assert panel["targets"]


@each
def test_titles_are_unique_so_that_a_person_can_name_a_panel(dashboard: Dashboard) -> None:
    titles = [panel.title for panel in dashboard.panels]
    assert len(set(titles)) == len(titles)


@needs_promtool
def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": filled(expr)} for number, (_, expr) in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


@pytest.mark.parametrize(("panel", "expr"), list(expressions()))
def test_every_metric_of_a_panel_is_exposed(panel: str, expr: str) -> None:
    named = set(re.findall(r"\b(?:gpu_\w+|DCGM_\w+|ALERTS)\b", without_labels(expr)))
    assert named, panel
    assert {name if name in EXPOSED else SUFFIXES.sub("", name) for name in named} <= EXPOSED | OF_PROMETHEUS
