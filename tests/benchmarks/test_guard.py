"""The guard of ratios runs, and tells what moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.guard import compare, guard, read_stored
from benchmarks.machine import RESULTS, read_machine, write_result
from benchmarks.timing import Spread

STEADY = Spread(0.5, 0.48, 0.52, 9)


@pytest.mark.parametrize(
    ("now", "moved"),
    [
        (STEADY, ""),
        (Spread(0.56, 0.53, 0.60, 9), ""),  # outside, but within the margin
        (Spread(0.9, 0.5, 1.3, 9), ""),  # a busy machine proves nothing
        (Spread(0.7, 0.65, 0.75, 9), "slower"),
        (Spread(0.3, 0.28, 0.33, 9), "faster"),
    ],
)
def test_only_what_lies_beyond_both_spreads_has_moved(now: Spread, moved: str) -> None:
    (finding,) = compare({"a / b": now}, {"a / b": STEADY, "gone / b": STEADY})
    assert finding.moved == moved
    assert finding.line().rstrip().endswith(moved.upper())


def test_what_was_not_stored_is_new() -> None:
    (finding,) = compare({"a / b": STEADY}, {})
    assert finding.moved == ""
    assert "new" in finding.line()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    path.write_text('{"machine": {}}')
    with pytest.raises(ValueError, match="--update"):
        read_stored(path)


def test_the_stored_ratios_can_be_read() -> None:
    path = RESULTS / "guard.json"
    if not path.exists():
        pytest.skip("nothing is stored yet")
    ratios, features = read_stored(path)
    assert "int8 network / fp32 network" in ratios
    assert all(0 < spread.low <= spread.median <= spread.high for spread in ratios.values())
    assert features


@pytest.mark.slow
def test_it_runs_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_CACHE_DIR", str(tmp_path))
    app = Typer()
    app.command()(guard)
    path = tmp_path / "guard.json"
    slow = Spread(1e-6, 1e-6, 1e-6, 5)
    write_result("guard", {"ratios": {"indexed PNG / Pillow's": slow}}, read_machine(), tmp_path)
    arguments = ["--size", "64x64", "--seconds", "0", "--stored", str(path)]
    done = CliRunner().invoke(app, [*arguments, "--strict"])
    assert done.exit_code == 1, done.output
    (moved,) = (line for line in done.output.splitlines() if line.endswith("SLOWER"))
    assert moved.startswith("indexed PNG / Pillow's")
    assert done.output.count("before new") == 5
    assert json.loads(path.read_text())["ratios"] == {"indexed PNG / Pillow's": vars(slow)}
