"""The Grafana dashboard of ``configs/`` shows the metrics that there are, all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jobs.metrics import COUNTERS, GAUGES

TEXT = (Path(__file__).parents[2] / "configs/grafana.json").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads(TEXT)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]
# As Ray gives them to Prometheus, with the label that tells kinds apart.
EXPORTED = {f"ray_{name}_total": label for name, (_, label) in COUNTERS.items()}
EXPORTED |= {f"ray_{name}": label for name, (_, label) in GAUGES.items()}


def test_panel_stays_empty_since_nothing_has_its_name() -> None:
    assert {name for query in QUERIES for name in re.findall(r"ray_\w+", query)} == EXPORTED.keys()


def test_kinds_are_told_apart_by_a_label_that_a_metric_has_not() -> None:
    for query in QUERIES:
        allowed = {"output", *(EXPORTED[name] for name in re.findall(r"ray_\w+", query))}
        assert set(re.findall(r"by \((\w+)\)", query)) <= allowed, query
        assert set(re.findall(r"(\w+)=~", query)) == {"output"}, query
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown == set(re.findall(r"by \((\w+)\)", target["expr"])), target


def test_counter_is_drawn_that_only_rises_or_the_rate_of_a_gauge() -> None:
    for query in QUERIES:
        for name in re.findall(r"ray_\w+", query):
            within = re.findall(rf"(\w+)\({name}{{[^}}]*}}\[", query)
            assert bool(within) == name.endswith("_total") or within == ["deriv"], query
            assert {*within} <= {"rate", "increase", "deriv"}


def test_grafana_refuses_the_file_or_asks_another_source_than_the_chosen_one() -> None:
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"source": "datasource", "output": "query"}
    assert {*re.findall(r"\$\{?(\w+)", TEXT)} == {*variables, "__range"}
    for panel in PANELS:
        asked = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${source}"} for source in asked)
        assert {"id", "type", "title", "gridPos", "targets", "fieldConfig"} <= panel.keys()
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_panels_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24, "Grafana's grid has 24 columns"
        taken |= cells
