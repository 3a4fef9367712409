"""Dashboard and alert rules name only metrics, and labels, that a running server exposes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.waiting import wait_for

DEPLOY = Path(__file__).parents[3] / "deploy"
# Prometheus and its scrape configuration bring these.
OUTSIDE_METRICS = {"up"}
OUTSIDE_LABELS = {"instance", "job"}
FUNCTIONS = {
    "sum", "max", "rate", "increase", "max_over_time", "histogram_quantile", "by", "label_values",
}  # fmt: skip

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
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The metrics of a server that has answered, refused, failed, and could not load a change."""
    folder = tmp_path_factory.mktemp("repository")
    model = write_model(folder)
    engine = FakeEngine(MODEL_SIZE, failing_runs=frozenset({1}))
    settings = {"enable_model_control": True, "max_engine_failures": 1}
    chosen = free_ports(folder).model_copy(update=settings)
    with ServerThread(chosen, serve_fake(engine)) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}") as http:
            codes = [
                http.post("/v2/models/bands/segment", content=data).status_code
                for data in (encode(bands(32, 48)), b"no image", encode(bands(32, 48)))
            ]
            assert codes == [200, 400, 500]
            http.get("/v2", headers={"X-Long": "a" * 40_000})
            (model / "labels.txt").write_text("other")
            assert http.post("/v2/repository/models/bands/load").status_code == 400
            wait_for(lambda: http.get("/v2/models/bands/ready").status_code == 200)
        return httpx.get(f"http://127.0.0.1:{server.ports.metrics}/metrics").text


@pytest.fixture(scope="module")
def exposed(page: str) -> dict[str, set[str]]:
    """The labels of every sample."""
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


def test_every_metric_of_the_server_is_on_the_dashboard(page: str) -> None:
    shown = set().union(*(read_names(text)[0] for text in dashboard_expressions().values()))
    # Those without a sample too.
    own = {
        family.name
        for family in text_string_to_metric_families(page)
        if family.name.startswith("segserve_") and not family.name.endswith("_created")
    }
    assert {name for name in own if not any(m.startswith(name) for m in shown)} == set()
    empty = {f.name for f in text_string_to_metric_families(page) if not f.samples}
    assert not empty & own


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
