"""The Grafana dashboard and the alerts ask for metrics that a real server has, and the dashboard shows them all."""

import json
import re
from typing import Any

import pytest

from kibun.server.observability.logs import FIELDS
from tests.support import ROOT
from tests.support.scraping import Scrape, scrape
from tests.support.serving import serve

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "kibun.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
ALERTS = DEPLOY / "prometheus" / "kibun-alerts.yml"
METRIC = re.compile(r"\b(?:kibun|process)_[a-z_]+")
# Labels that Prometheus adds itself.
ADDED = {"job", "instance"}


@pytest.fixture(scope="module")
def served() -> Scrape:
    with serve("--metrics-port", "0") as server:
        return scrape(server)


def names(found: Scrape) -> set[str]:
    """Every name that can be asked for, also of families without a sample yet."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in found.families for suffix in suffixes[family.type]}


def labels(found: Scrape) -> set[str]:
    # Families that count by labels show them from their first sample on.
    later = {"method", "code", "reason"}
    return {name for sample in found.samples for name in sample.labels} | later | ADDED


def check(query: str, found: Scrape) -> None:
    asked = set(METRIC.findall(query))
    assert asked, query
    assert asked <= names(found), f"{asked - names(found)} in {query}"
    used = {name for group in re.findall(r"by \(([^)]*)\)", query) for name in re.split(r",\s*", group)}
    used |= set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!=|!~|=)", query))
    assert used <= labels(found), f"{used - labels(found)} in {query}"
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing), query
    if "histogram_quantile" in query:
        assert re.search(r"by \([^)]*\ble\b", query), f"{query}: a quantile needs le"
    for name in asked:
        if name.endswith(("_total", "_bucket", "_sum", "_count")):
            assert re.search(rf"(?:rate|increase)\({name}\b", query), f"{query}: a counter alone only grows"


def test_every_query_asks_for_what_there_is(served: Scrape) -> None:
    for query in QUERIES:
        check(query, served)


def test_a_query_for_what_there_is_not_is_found_out(served: Scrape) -> None:
    for wrong in (
        "kibun_streams",
        "sum(kibun_open_streams) by (tenant)",
        'kibun_open_streams{tenant="a"}',
        "histogram_quantile(0.5, sum by (kind) (rate(kibun_queue_delay_seconds_bucket[5m])))",
        "sum(kibun_utterances_total)",
    ):
        with pytest.raises(AssertionError):
            check(wrong, served)


def test_every_metric_of_ours_is_shown(served: Scrape) -> None:
    shown = {name for query in QUERIES for name in METRIC.findall(query)}
    for family in served.families:
        if family.name.startswith("kibun_"):
            assert any(name.startswith(family.name) for name in shown), family.name


def test_it_can_be_imported_into_any_grafana() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "job", "instance"}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for part in [*PANELS, *(target for panel in PANELS for target in panel["targets"])]:
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for query in QUERIES:
        selectors = re.findall(r"\{[^}]*\}", query)
        assert len(selectors) == len(METRIC.findall(query))
        assert all(s.startswith('{job=~"$job",instance=~"$instance"') for s in selectors), query
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]


def test_alerts_ask_for_what_there_is(served: Scrape) -> None:
    yaml = pytest.importorskip("yaml", reason="needs pyyaml")
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    assert len(rules) >= 5
    for rule in rules:
        check(rule["expr"], served)
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        assert used <= (set(re.split(r",\s*", grouped[-1])) if grouped else labels(served)), rule["alert"]


def test_the_manual_names_every_metric_and_every_field_of_the_log(served: Scrape) -> None:
    manual = (DEPLOY.parent / "docs" / "operations.md").read_text()
    for family in served.families:
        if family.name.startswith("kibun_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert f"`{name}`" in manual, name
    for field in set(FIELDS):
        assert f"`{field}`" in manual, field
    assert set(METRIC.findall(manual)) - {"process_"} <= names(served) | {f.name for f in served.families}
