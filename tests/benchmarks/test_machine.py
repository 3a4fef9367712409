"""Result files: what every one of them tells."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks.machine import command_line, read_machine, save_plot, write_result
from benchmarks.timing import ratios, spread_of


@dataclass(frozen=True)
class Row:
    name: str
    ms: float


def test_a_result_tells_the_machine_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    machine = read_machine(("numpy", "no-such-package"))
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert set(machine.packages) == {"numpy"}
    assert machine.variables["OMP_NUM_THREADS"] == "3"
    path = write_result("rows", {"rows": [Row("a", 1.5)]}, machine, tmp_path / "new")
    told = json.loads(path.read_text())
    assert path.name == "rows.json"
    assert told["rows"] == [{"name": "a", "ms": 1.5}]
    assert told["machine"]["cpu"] == machine.cpu
    assert told["command"] == command_line()
    assert told["command"].startswith("python ")


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object is not valid"):
        write_result("rows", {"rows": [object()]}, read_machine(), tmp_path)


def test_a_plot_is_written(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    path = save_plot("curve", figure, read_machine(), tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_ratios_are_taken_turn_by_turn() -> None:
    # The second turn was disturbed: both took twice the time.
    assert ratios([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]).median == 0.5
    assert ratios([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]).high == 0.5
    spread = spread_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.median, spread.low, spread.high, spread.count) == (3.0, 2.0, 4.0, 5)
