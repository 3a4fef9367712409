"""The folder of a run, without a network."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import FrameType

import pytest

import training.runs.checkpoint
from training.runs.checkpoint import Checkpoint, PartOfEpoch, RunFolder, RunState, hold_run, is_held
from training.runs.environment import RunEnvironment

ENVIRONMENT = RunEnvironment("2026-01-02T03:04:05+00:00", "CPython 3.11", "Linux", "a CPU", 2, (),
                             {}, {"numpy": "1.26.4"}, None, None)  # fmt: skip


def finish_epoch(folder: RunFolder, state: RunState) -> None:
    """Weights and states are as many as the epoch."""
    with folder.checkpoint(state) as aside:
        aside.last.write_text(f"weights {state.epochs_done}")
        aside.optimizer.write_text(f"states {state.epochs_done}")


def told_by(checkpoint: Checkpoint) -> tuple[str, str, str, RunState]:
    texts = (path.read_text() for path in (checkpoint.last, checkpoint.optimizer, checkpoint.best))
    return *texts, checkpoint.read_state()  # type: ignore[return-value]


def newest(folder: RunFolder) -> Checkpoint:
    found = folder.newest()
    assert found is not None
    return found


def test_starting_notes_command_options_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--checkname", "with space"])
    folder = RunFolder(tmp_path / "runs" / "camvid")
    folder.start({"lr": 0.1, "run": folder.path}, ENVIRONMENT)
    assert folder.command.read_text() == "python train.py --checkname 'with space'\n"
    assert json.loads(folder.options.read_text()) == {"lr": 0.1, "run": str(folder.path)}
    (start,) = json.loads(folder.environment.read_text())
    assert (start["cpu"], start["packages"]) == ("a CPU", {"numpy": "1.26.4"})


def test_a_resumed_run_adds_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["train.py", name])
        folder.start({}, ENVIRONMENT)
    assert folder.command.read_text().splitlines() == ["python train.py one", "python train.py two"]
    assert len(json.loads(folder.environment.read_text())) == 2


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.newest() is None
    assert folder.read_state() == RunState(0, 0.0, -1)
    finish_epoch(folder, RunState(1, 0.5, 0))
    finish_epoch(folder, RunState(2, 0.5, 0))
    assert told_by(newest(folder)) == ("weights 2", "states 2", "weights 1", RunState(2, 0.5, 0))
    assert (folder.last.read_text(), folder.best.read_text()) == ("weights 2", "weights 1")
    finish_epoch(folder, RunState(3, 0.6, 2))
    assert (folder.last.read_text(), folder.best.read_text()) == ("weights 3", "weights 3")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.params", "checkpoint-0003", "last.params",
    ]  # fmt: skip


def test_the_last_weights_are_the_best_where_nothing_is_scored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        finish_epoch(folder, RunState(epoch))
    assert folder.best.read_text() == "weights 2"


def test_a_checkpoint_within_an_epoch_keeps_place_and_best(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    finish_epoch(folder, RunState(2, 0.5, 1))
    part = PartOfEpoch(length=9).extended(2.0, 3.0).extended(None, 1.0).extended(4.0, 0.5)
    assert part == PartOfEpoch(iterations=3, length=9, steps=2, loss=6.0, seconds=4.5)
    assert part.mean_loss == 3.0
    assert math.isnan(PartOfEpoch().mean_loss)
    state = RunState(2, 0.5, 1, part)
    with folder.checkpoint(state) as aside:
        aside.last.write_text("weights 2 and 3 steps")
        aside.optimizer.write_text("states")
    # The epoch before is still the best, and its weights are not overwritten.
    assert told_by(newest(folder)) == ("weights 2 and 3 steps", "states", "weights 2", state)
    assert newest(folder).path.name == "checkpoint-0002-000003"
    finish_epoch(folder, RunState(3, 0.5, 1))
    assert told_by(newest(folder))[:3] == ("weights 3", "states 3", "weights 2")
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-0003"]


def test_without_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        finish_epoch(folder, RunState(epoch, 0.5, 0))
    assert (folder.last.read_text(), folder.best.read_text()) == ("weights 2", "weights 1")


class Killed(BaseException):
    """Stands for the end of the process at some line."""


def finish_epoch_until(folder: RunFolder, state: RunState, lines: int) -> bool:
    """Ends before line number ``lines`` of ``checkpoint.py`` is run; whether it was reached."""
    left = lines

    def trace(frame: FrameType, event: str, argument: object):  # type: ignore[no-untyped-def]
        nonlocal left
        if frame.f_code.co_filename != training.runs.checkpoint.__file__:
            return None
        left -= event == "line"
        if left < 0:
            raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        finish_epoch(folder, state)
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def test_whenever_it_is_killed_the_newest_checkpoint_is_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    states = {2: RunState(2, 0.5, 0), 3: RunState(3, 0.6, 2), 4: RunState(4, 0.6, 2)}
    best = {2: "weights 1", 3: "weights 3"}
    seen, lines, reached = set(), 0, True
    while reached:
        folder = RunFolder(tmp_path / str(lines))
        finish_epoch(folder, RunState(1, 0.5, 0))
        finish_epoch(folder, states[2])
        reached = finish_epoch_until(folder, states[3], lines)
        done = folder.read_state().epochs_done
        seen.add(done)
        assert told_by(newest(folder)) == (f"weights {done}", f"states {done}", best[done],
                                           states[done])  # fmt: skip
        folder.start({}, ENVIRONMENT)
        assert folder.best.read_text() == best[done]
        finish_epoch(folder, states[done + 1])
        assert told_by(newest(folder))[1:3] == (f"states {done + 1}", best[3])
        assert not list(folder.path.glob("*.part"))
        lines += 1
    assert seen == {2, 3}
    assert lines > 50


def test_a_fresh_run_moves_an_earlier_one_aside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for number in ("run.1", "run.2"):
        finish_epoch(folder, RunState(1))
        assert folder.make_room() == tmp_path / number
        assert newest(RunFolder(tmp_path / number)).last.read_text() == "weights 1"
        assert not folder.path.exists()


def test_a_run_without_an_epoch_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start({}, ENVIRONMENT)
    folder.log.write_text("epoch\n")
    folder.tensorboard.mkdir()
    assert folder.make_room() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["options.json"]


def test_runs_of_the_first_version_are_read(tmp_path: Path) -> None:
    for name, text in (("last.params", "w"), ("best.params", "b"), ("trainer.states", "s")):
        (tmp_path / name).write_text(text)
    (tmp_path / "state.json").write_text('{"epochs_done": 3, "best_miou": 0.5, "best_epoch": 1}')
    folder = RunFolder(tmp_path)
    assert told_by(newest(folder)) == ("w", "s", "b", RunState(3, 0.5, 1))
    folder.start({}, ENVIRONMENT)
    finish_epoch(folder, RunState(4, 0.5, 1))
    assert told_by(newest(folder)) == ("weights 4", "states 4", "b", RunState(4, 0.5, 1))


def test_one_process_a_folder(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with hold_run(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(ValueError, match="another process is training"), hold_run(tmp_path):
            pass
    assert not is_held(tmp_path)
