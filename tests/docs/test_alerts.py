"""Alerts: each has cases that fire and that do not, a page, and no metric that nobody tells."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.wire.problems import PROBLEMS
from tests.docs.listing import metric_names
from tests.support.programs import need

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/voltroute.rules.yml"
TESTS = DEPLOY / "prometheus/voltroute.tests.yml"
WORDS = re.compile(r"\b[a-z_]+(?=[\s)]|$)")
FUNCTIONS = {"abs", "and", "by", "increase", "le", "login", "max", "min", "on", "or", "rate", "shard", "sum", "unless"}
FUNCTIONS |= {"histogram_quantile", "predict_linear", "vector", "instance", "tenant", "key", "queryid", "slot_name"}
FUNCTIONS |= {"application_name", "outcome", "replica", "status", "phase", "reason", "relname", "step"}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("words", [("check", "rules", RULES.name), ("test", "rules", TESTS.name)])
def test_promtool_finds_nothing(words: tuple[str, ...]) -> None:
    need("promtool")
    done = subprocess.run(["promtool", *words], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_cases_that_fire_and_that_do_not() -> None:
    cases: dict[str, set[bool]] = {}
    for group in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in group["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert cases == {alert["alert"]: {True, False} for alert in alerts()}


def test_each_alert_and_each_problem_has_a_page() -> None:
    books = DEPLOY / "runbooks"
    assert {file.stem for file in books.glob("*.md")} == {alert["alert"] for alert in alerts()}
    assert {file.stem for file in books.glob("problems/*.md")} == set(PROBLEMS)
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"deploy/runbooks/{alert['alert']}.md"
    for slug, problem in PROBLEMS.items():
        assert problem.remedy in (books / f"problems/{slug}.md").read_text()


def metrics_of(expression: str) -> tuple[set[str], set[str]]:
    """The metrics that a PromQL expression names, and those of them that no router tells."""
    known = {name for name, _ in metric_names()} | {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
    known |= {f"{name}_{part}" for name in list(known) for part in ("bucket", "count", "sum")}
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
    asked = {word for word in WORDS.findall(bare) if word not in FUNCTIONS}
    return asked, asked - known


def test_alerts_ask_for_metrics_that_there_are() -> None:
    for alert in alerts():
        asked, unknown = metrics_of(alert["expr"])
        assert asked, alert
        assert not unknown, alert["alert"]
