"""Prometheus: promtool reads its files and runs the tests of the rules; every name in them exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment import DEPLOY, HOME
from tests.promql import TARGET, TRITON, gateway, request_path, selectors, sidecar

FOLDER = DEPLOY / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here (Debian: apt install prometheus)"
)


def _promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, timeout=300)


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    result = _promtool("check", "config", FOLDER / "prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 rule files found" in result.stdout
    result = _promtool("check", "rules", FOLDER / "rules.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(RULES)} rules found" in result.stdout


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    result = _promtool("test", "rules", FOLDER / "rules_test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
@pytest.mark.parametrize(("expression", "side"), [("vector(1) < 0", "exp:"), ("vector(1)", "got:")])
def test_the_tests_of_the_rules_know_every_alert(expression: str, side: str, tmp_path: Path) -> None:
    """With alerts that never fire, each is missed somewhere; with alerts that always do, each is too many."""
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    rules = [rule | {"expr": expression, "for": "0s"} if "alert" in rule else rule for rule in RULES]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    result = _promtool("test", "rules", tmp_path / "rules_test.yml")
    assert result.returncode != 0
    lines = " ".join(line for line in (result.stdout + result.stderr).splitlines() if side in line)
    assert set(re.findall(r'alertname="(\w+)"', lines)) == ALERTS.keys()


def test_every_name_in_the_rules_exists() -> None:
    known = TRITON | request_path() | gateway() | sidecar() | {"up": set()}
    used = set()
    for rule in RULES:
        for name, labels in selectors(rule["expr"]):
            used.add(name)
            assert name in known or name in RECORDED, f"{name} in {rule}"
            assert labels <= known.get(name, set()) | TARGET, f"{name}{labels} in {rule}"
    assert len(used) > 20


def test_recorded_before_they_are_used() -> None:
    """Rules of a group run in order: a later one would give the value of the round before."""
    seen: set[str] = set()
    for rule in RULES:
        names = {name for name, _ in selectors(rule["expr"])}
        assert names & RECORDED <= seen, rule
        seen |= {rule["record"]} if "record" in rule else set()


def test_alerts_say_what_to_do() -> None:
    assert len(ALERTS) > 12
    for name, rule in ALERTS.items():
        assert name.startswith("Gr4ad")
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"].keys() == {"summary", "description"}, name
        assert len(rule["annotations"]["description"]) > 60, name


def test_commands_and_names_in_the_descriptions_exist() -> None:
    text = " ".join(rule["annotations"]["description"] for rule in ALERTS.values())
    known = request_path() | gateway() | {"gr4ad_width_need": set()}
    assert set(re.findall(r"\bgr4ad_\w+", text)) <= known.keys()
    for module in re.findall(r"python -m (\S+?)`", text):
        assert (HOME / f"{module.replace('.', '/')}.py").exists()
    assert set(re.findall(r"Gr4ad\w+", text)) <= ALERTS.keys()


@pytest.mark.parametrize("alert", ["Gr4adQueueLong", "Gr4adBeamsNarrow"])
def test_an_overload_is_seen_by_wait_and_by_width(alert: str) -> None:
    """Each alone misses one: narrow beams keep the queue short, and the narrowest may not be enough."""
    names = {name for name, _ in selectors(ALERTS[alert]["expr"])}
    assert len(names & {"gr4ad:queue_seconds_per_request", "gr4ad:beam_rows_ratio:avg2m"}) == 1


# The tokenizer


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a", {("a", ())}),
        ("rate(a_total[5m]) / b:c:rate5m > 1e-9", {("a_total", ()), ("b:c:rate5m", ())}),
        ('sum by (le, x) (rate(a_bucket{x="}y{", z=~"b"}[$__rate_interval]))', {("a_bucket", ("x", "z"))}),
        ("a and on (pod) b unless c offset 5m", {("a", ()), ("b", ()), ("c", ())}),
        ("a * on (x) group_left (y) b  # not c", {("a", ()), ("b", ())}),
        ("(sum(a) by (x) < bool 1) or 0 * vector(1) + inf", {("a", ())}),
        ("avg(rate(a[2m:15s]))", {("a", ())}),
    ],
)
def test_selectors(expression: str, expected: set[tuple[str, tuple[str, ...]]]) -> None:
    assert {(name, tuple(sorted(labels))) for name, labels in selectors(expression)} == expected


def test_selectors_refuse_what_does_not_close() -> None:
    with pytest.raises(ValueError, match="expected '}'"):
        list(selectors('a{x="1"'))
