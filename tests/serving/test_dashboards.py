"""Dashboard and alert rules name only metrics, and labels, that a running server exposes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from band_model import Served, bands, encode
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[2] / "deploy"
# Prometheus and its scrape configuration bring these.
OUTSIDE_METRICS = {"up"}
OUTSIDE_LABELS = {"instance", "job"}
FUNCTIONS = {"sum", "rate", "histogram_quantile", "by", "label_values"}

TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\$\w+|[a-zA-Z_:][\w:]*|\d+(?:\.\d+)?|[^\s\w]', re.ASCII
)


def alert_expressions() -> dict[str, str]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def dashboard_expressions() -> dict[str, str]:
    board = json.loads((DEPLOY / "grafana" / "segserve.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    queries = {v["name"]: v["query"] for v in board["templating"]["list"] if v["type"] == "query"}
    return found | queries


def read_names(expression: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels of a PromQL expression."""
    metrics, labels, opened = set(), set(), []
    tokens = TOKEN.findall(expression)
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if token in "({":
            # The brackets behind "by" and the braces behind a metric hold labels.
            opened.append("labels" if token == "{" or before == "by" else "expression")
        elif token in ")}":
            opened.pop()
        elif re.fullmatch(r"[a-zA-Z_:][\w:]*", token) and token not in FUNCTIONS:
            if "labels" in opened[-1:] or (tokens[0] == "label_values" and after == ")"):
                labels.add(token)
            else:
                metrics.add(token)
    assert not opened, expression
    return metrics, labels


@pytest.fixture(scope="module")
def exposed(served: Served) -> dict[str, set[str]]:
    """The labels of every sample of a server that has answered, refused and failed."""
    with httpx.Client(base_url=f"http://{served.http}") as http:
        http.post("/v2/models/bands/segment", content=encode(bands(32, 48)))
        http.post("/v2/models/bands/segment", content=b"no image")
        http.get("/v2", headers={"X-Long": "a" * 40_000})
    page = httpx.get(f"http://127.0.0.1:{served.server.ports.metrics}/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


EXPRESSIONS = {**alert_expressions(), **dashboard_expressions()}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_is_named_is_exposed(exposed: dict[str, set[str]], name: str) -> None:
    metrics, labels = read_names(EXPRESSIONS[name])
    assert metrics
    assert metrics - OUTSIDE_METRICS <= set(exposed)
    known = OUTSIDE_LABELS.union(*(exposed[metric] for metric in metrics - OUTSIDE_METRICS))
    assert labels <= known


def test_every_metric_of_the_server_is_on_the_dashboard(exposed: dict[str, set[str]]) -> None:
    shown = set().union(*(read_names(text)[0] for text in dashboard_expressions().values()))
    families = {re.sub("_(sum|count|bucket|created)$", "", name) for name in exposed}
    missing = {
        name
        for name in families
        if not any(metric.startswith(name.removesuffix("_total")) for metric in shown)
    }
    assert missing == set()


def test_the_rules_have_the_shape_that_prometheus_reads() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    assert set(rules) == {"groups"}
    for group in rules["groups"]:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"\d+[smh]", rule["for"])
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["summary"]
    assert len(alert_expressions()) == sum(len(group["rules"]) for group in rules["groups"])


def test_the_reader_of_expressions_sees_what_is_wrong() -> None:
    expression = 'sum by (model) (rate(a_total{code=~"x|y"}[5m])) / on_b{c!="d"} > 0.01'
    assert read_names(expression) == ({"a_total", "on_b"}, {"model", "code", "c"})
