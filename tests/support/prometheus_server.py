"""A real Prometheus, with the rules of deploy/ sped up, that scrapes a server of ours."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.own_environment import unavailable
from tests.support.waiting import wait_for

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
# Ranges of the rules, some of half an hour, become this; it must hold several scrapes.
RANGE = "8s"
EVERY = "500ms"


def find_program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        unavailable(f"{name} is not installed (Debian's package prometheus)")
    return str(found)


def speed_up(rules: str) -> str:
    """The rules with short ranges and without waiting; thresholds a second shrink likewise."""
    text = re.sub(r"\[\d+[smh]\]", f"[{RANGE}]", rules)
    return re.sub(r"for: \d+[smh]", "for: 0s", text)


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    address: str

    def alerts(self) -> dict[str, list[dict[str, str]]]:
        """Firing alerts by name, each with its labels."""
        answer = httpx.get(f"{self.address}/api/v1/alerts").json()
        found: dict[str, list[dict[str, str]]] = {}
        for alert in answer["data"]["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def rules(self) -> list[dict[str, str]]:
        """Every rule with the health of its last evaluation."""
        answer = httpx.get(f"{self.address}/api/v1/rules").json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression."""
        answer = httpx.get(f"{self.address}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def wait_for_alert(self, name: str, **labels: str) -> dict[str, str]:
        """Until it fires, with these labels among its own."""

        def find() -> dict[str, str] | None:
            firing = self.alerts().get(name, [])
            return next((found for found in firing if labels.items() <= found.items()), None)

        found = wait_for(find)
        assert found is not None
        return found

    def wait_for_clear(self, name: str) -> None:
        """Until it does not fire."""
        wait_for(lambda: name not in self.alerts())

    def wait_for_scrape(self) -> None:
        """Until it has scraped the server once more than by now."""
        begun = time.time()

        def scraped() -> bool:
            found = self.query("timestamp(up)")
            return bool(found) and float(found[0]["value"][1]) > begun

        wait_for(scraped)


@contextmanager
def run_prometheus(folder: Path, metrics_port: int) -> Iterator[Prometheus]:
    """Scrapes the metrics port of a server twice a second, and evaluates deploy/'s rules."""
    program = find_program("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alerts.yml").write_text(speed_up(RULES.read_text()))
    job = {"job_name": "segserve", "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]}
    config = {
        "global": {
            "scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY,
        },
        "rule_files": ["alerts.yml"],
        "scrape_configs": [job],
    }  # fmt: skip
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program, f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
                "--storage.tsdb.retention.time=1h",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _is_ready(address, process))
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(address: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus ended; see its log"
    try:
        return httpx.get(f"{address}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
