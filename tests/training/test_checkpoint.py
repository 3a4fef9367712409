"""The folder of a run, without a network."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from training.checkpoint import RunFolder, RunState


def test_starting_notes_the_command_and_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--checkname", "with space"])
    folder = RunFolder(tmp_path / "runs" / "camvid")
    folder.start({"lr": 0.1, "run": folder.path}, resumed=False)
    assert (folder.path / "command.txt").read_text() == "python train.py --checkname 'with space'\n"
    options = json.loads((folder.path / "options.json").read_text())
    assert options == {"lr": 0.1, "run": str(folder.path)}


def test_the_state_comes_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_state() == RunState(0, 0.0, -1)
    folder.write_state(RunState(3, 0.25, 1))
    assert folder.read_state() == RunState(3, 0.25, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json"]


def test_the_log_has_one_header(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        folder.append_log({"epoch": epoch, "loss": 0.5 / epoch})
    with folder.log.open() as file:
        assert list(csv.DictReader(file)) == [
            {"epoch": "1", "loss": "0.5"},
            {"epoch": "2", "loss": "0.25"},
        ]


@pytest.mark.parametrize("resumed", [True, False])
def test_only_a_resumed_run_keeps_log_and_state(tmp_path: Path, resumed: bool) -> None:
    folder = RunFolder(tmp_path)
    folder.append_log({"epoch": 1})
    folder.write_state(RunState(1, 0.5, 0))
    folder.start({}, resumed=resumed)
    assert folder.log.exists() is resumed
    assert folder.read_state().epochs_done == (1 if resumed else 0)
