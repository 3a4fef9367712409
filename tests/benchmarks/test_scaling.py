"""The scaling curves: points are measured and drawn; a queue is a queue."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.engines.graphs import symbol_of
from benchmarks.machine import read_machine, write_result
from benchmarks.scaling import app, curves
from benchmarks.studies.scaling_engine import NETWORK, Point, Setting, measure_apart, read_point
from benchmarks.studies.scaling_server import Callers, Steady, arrive, simulate_queue
from benchmarks.timing import Spread
from export.passes.build import number_of_classes


def point(setting: Setting) -> Point:
    spread = Spread(10.0, 9.0, 11.0, 5)
    return Point(setting, spread, spread, 12.5, 20.0, 300.0, 45.0)


def test_curves_vary_one_thing() -> None:
    base = Setting(threads=4)
    found = {curve.name: curve.settings for curve in curves(base, ["64x64", "128x128"])}
    assert [setting.pixels for setting in found["pixels, fp32"]] == [4096, 16384]
    assert {setting.classes for setting in found["classes"]} > {19}
    assert [setting.threads for setting in found["threads"]] == [1, 2, 3, 4]
    for name in ("classes", "batch", "instances"):
        assert {setting.pixels for setting in found[name]} == {base.pixels}


def test_a_point_survives_its_process() -> None:
    made = point(Setting(batch=2))
    assert read_point(json.loads(json.dumps(asdict(made)))) == made


@pytest.mark.slow
def test_a_point_is_measured_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path))
    setting = Setting(64, 64, "fp32", classes=5, batch=2, threads=2, instances=2, rounds=2)
    found = measure_apart(setting)
    assert found.setting == setting
    assert found.run_ms.count == 4
    assert found.images_per_second > 0
    assert found.memory_mib > found.graph_mib > 100


def test_a_published_symbol_takes_other_classes() -> None:
    assert number_of_classes(symbol_of(NETWORK, 19, 64, 64), 64, 64) == 19
    assert number_of_classes(symbol_of(NETWORK, 60, 64, 64), 64, 64) == 60


def test_an_ideal_queue() -> None:
    # Evenly at 80 %: nobody waits. All at once: the k-th waits for those before.
    assert simulate_queue(arrive("evenly", 8.0, 100.0), 0.1) == pytest.approx(1.0)
    assert simulate_queue(np.zeros(100), 1.0) == pytest.approx(99.01 / 50.5, rel=0.01)
    assert simulate_queue(np.zeros(100), 1.0, 2) == pytest.approx(50 / 25.5, rel=0.01)
    poisson = arrive("poisson", 8.0, 2000.0)
    assert simulate_queue(poisson, 0.1) > 3  # M/D/1 at 80 %
    assert simulate_queue(poisson, 0.8, 8) < 2.5  # M/D/8


def test_plots_are_drawn(tmp_path: Path) -> None:
    machine = read_machine()
    made = {
        curve.name: [point(setting) for setting in curve.settings]
        for curve in curves(Setting(), ["64x64", "128x128"])
    }
    write_result("scaling_engine", {"curves": made}, machine, tmp_path)
    callers = [Callers(n, 5.0, 200.0 * n, 220.0 * n, 0.2, 400.0) for n in (1, 2)]
    steady = [Steady("evenly", 4.0, 4.0, 200.0, 250.0, 1.25, 1.0)]
    content = {"callers": {"1 x 2 threads": callers}, "steady": {"1 x 2 threads": steady}}
    write_result("scaling_server", content, machine, tmp_path)
    done = CliRunner().invoke(app, ["plot", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    for name in ("scaling_engine.png", "scaling_server.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
