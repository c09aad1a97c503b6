"""Grafana dashboards: every query parses and names what exists; the files are what provisioning wants.

Grafana itself was never run on them.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment import DEPLOY
from tests.promql import TARGET, TRITON, gateway, request_path, selectors, sidecar
from tests.unit.test_prometheus import ALERTS, PROMTOOL, RECORDED, needs_promtool

FOLDER = DEPLOY / "grafana" / "dashboards"
BOARDS: dict[str, dict[str, Any]] = {p.name: json.loads(p.read_text()) for p in sorted(FOLDER.glob("*.json"))}


def _queries(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Title of the panel or variable, and expression."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
        assert match, variable
        assert variable["query"]["query"] == variable["definition"]
        yield variable["name"], match[1]


@pytest.mark.parametrize("name", BOARDS)
def test_every_name_exists(name: str) -> None:
    known = TRITON | request_path() | gateway() | sidecar() | dict.fromkeys(RECORDED, {"result", "source"})
    known["ALERTS"] = {"alertname", "alertstate"}
    found = set()
    for title, expression in _queries(BOARDS[name]):
        for metric, labels in selectors(expression):
            found.add(metric)
            assert metric in known, f"{title}: {metric}"
            assert labels <= known[metric] | TARGET, f"{title}: {metric}{labels}"
    assert len(found) > 15


def test_every_metric_of_ours_is_shown_somewhere() -> None:
    """What nobody looks at need not be measured; names of parts of a histogram count as one."""
    text = " ".join(expression for board in BOARDS.values() for _, expression in _queries(board))
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in request_path() | sidecar()}
    unused = {name for name in families if not re.search(rf"\b{name}", text + rules)}
    assert unused <= {
        "gr4ad_arrival_rate",  # `offered` is shown
        "gr4ad_indexer_generation_ready",  # one that is not has ads left to encode
        "gr4ad_indexer_heartbeat_timestamp_seconds",  # the readers' lag comes from it
        "gr4ad_indexer_unencoded_total",
    }


@needs_promtool
def test_promtool_parses_every_query(tmp_path: Path) -> None:
    rules = []
    for board in BOARDS.values():
        for number, (_, expression) in enumerate(_queries(board)):
            filled = expression.replace("$__rate_interval", "2m").replace("$instance", ".*")
            assert "$" not in filled, expression
            rules.append({"record": f"query:{board['uid'].replace('-', '_')}:{number}", "expr": filled})
    assert len(rules) > 60
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    result = subprocess.run(
        [str(PROMTOOL), "check", "rules", file], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", BOARDS)
def test_the_data_source_is_the_provisioned_one(name: str) -> None:
    file = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(file.read_text())["datasources"]
    expected = {"type": source["type"], "uid": source["uid"]}
    for panel in BOARDS[name]["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == expected
            assert all(target["datasource"] == expected for target in panel["targets"])
    assert all(variable["datasource"] == expected for variable in BOARDS[name]["templating"]["list"])


@pytest.mark.parametrize("name", BOARDS)
def test_what_provisioning_wants(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"].startswith("gr4ad-")
    assert "id" not in board  # Grafana numbers dashboards itself
    assert board["schemaVersion"] >= 36  # below, Grafana 12 migrates
    assert "__inputs" not in board  # for people who import by hand; provisioning does not fill them in
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(references) == len(set(references))
        assert panel["type"] in ("row", "timeseries", "stat", "table")
        assert panel["title"]


def test_uids_differ() -> None:
    assert BOARDS.keys() == {"index.json", "requests.json"}
    assert len({board["uid"] for board in BOARDS.values()}) == 2


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_in_the_grid_and_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_wait_and_width_are_beside_each_other() -> None:
    """A narrow beam hides an overload from the queue, so nobody should see one without the other."""
    first = [expression for _, expression in _queries(BOARDS["requests.json"])][:6]
    assert any("gr4ad:queue_seconds_per_request" in e for e in first)
    assert any("gr4ad:beam_rows_ratio" in e for e in first)


def test_alerts_have_the_name_that_the_dashboard_asks_for() -> None:
    (expression,) = (e for _, e in _queries(BOARDS["requests.json"]) if e.startswith("ALERTS"))
    (pattern,) = re.findall(r'alertname=~"([^"]+)"', expression)
    assert all(re.fullmatch(pattern, name) for name in ALERTS)
