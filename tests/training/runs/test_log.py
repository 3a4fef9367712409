"""What a run tells while it trains: log, events, curves, environment, time that is left."""

from __future__ import annotations

import builtins
import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import rich

from training.runs.checkpoint import PartOfEpoch, RunFolder, RunState
from training.runs.environment import read_environment
from training.runs.log import EpochRecord, RunLog, append_record, keep_records, read_records
from training.runs.progress import RemainingTime, RunProgress, format_seconds

RECORD = EpochRecord(1, 0.1, 2.5, 12.0, 0.8, 0.4, 0.5, 3.0, 1)


def record(epoch: int) -> EpochRecord:
    return replace(RECORD, epoch=epoch, loss=2.5 / epoch)


def read_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of the event files, as TensorBoard reads them: TFRecords of events."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            (length,) = struct.unpack_from("<Q", content, offset)
            event = Event.FromString(content[offset + 12 : offset + 12 + length])
            offset += 12 + length + 4
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_a_log_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    assert read_records(path) == ()
    for epoch in (1, 2):
        append_record(path, record(epoch))
    assert read_records(path) == (record(1), record(2))
    assert path.read_text().count("epoch") == 1


def test_a_line_without_its_end_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append_record(path, record(1))
    path.write_text(path.read_text() + "2,0.1,0.")
    assert read_records(path) == (record(1),)
    path.write_text(path.read_text() + "\nthree,0.1,0.2,1\n")
    with pytest.raises(ValueError, match=r"log\.csv, line 3: "):
        read_records(path)


def test_a_log_with_fewer_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch,learning_rate,loss,seconds,miou\n1,0.1,2.0,3.0,nan\n")
    (found,) = read_records(path)
    assert (found.loss, found.validation_seconds) == (2.0, 0.0)
    assert math.isnan(found.miou)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_lines_of_epochs_that_are_trained_again_go(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "log.csv"
    for epoch in (1, 2):
        append_record(path, record(epoch))
    kept = tuple(record(epoch) for epoch in range(1, epochs + 1))
    assert keep_records(path, epochs) == read_records(path) == kept


def test_a_run_writes_log_events_and_curves(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = RunLog(folder, RunState(), batches=10)
    log.add_step(0, 4, 3.0, 0.25)
    log.add_epoch(record(1))
    log.close()
    again = RunLog(folder, RunState(1), batches=10)
    again.add_epoch(replace(record(2), synthetic_miou=math.nan))
    again.close()
    assert [r.epoch for r in read_records(folder.log)] == [1, 2]
    scalars = read_scalars(folder.tensorboard)
    assert (5, "step/loss", 3.0) in scalars
    assert (5, "step/learning_rate", 0.25) in scalars
    assert (10, "epoch/loss", 2.5) in scalars
    assert (20, "epoch/loss", 1.25) in scalars
    assert [step for step, name, _ in scalars if name == "validation/synthetic_miou"] == [10]
    picture = cv2.imread(str(folder.curves))
    # Blue curves on white, axes in black.
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    assert tuple(colors[counts.argmax()]) == (255, 255, 255)
    assert (picture == (0xB2, 0x72, 0x00)).all(2).sum() > 100


def test_without_the_packages_there_are_warnings_and_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: object, **more: object) -> object:
        if name in ("tensorboardX", "training.runs.curves"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.warns(UserWarning, match="pip install") as warned:
        log = RunLog(RunFolder(tmp_path), RunState(), batches=10)
    assert len(warned) == 2
    log.add_step(0, 0, 1.0, 0.1)
    log.add_epoch(record(1))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_the_environment_names_packages_and_processors_and_nobody() -> None:
    environment = read_environment()
    assert environment.packages["numpy"] == np.__version__
    assert environment.python.startswith("CPython 3.")
    assert environment.cores >= 1
    assert environment.cpu
    assert str(Path.home()) not in repr(environment)


def test_a_copy_without_git_has_no_revision(tmp_path: Path) -> None:
    from training.runs.environment import _read_revision

    assert _read_revision(tmp_path) == (None, None)


def test_a_terminal_shows_epoch_and_validation_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The common console keeps the width that it found when it was first used.
    monkeypatch.setattr(rich, "_console", None)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    state = RunState(1, part=PartOfEpoch(iterations=2, length=4))
    with RunProgress(3, state, 4, validations=2, log_interval=1) as progress:
        progress.begin_epoch(1, 2)
        progress.advance(1, 2, 2.5, 0.1)
        assert progress.remaining.steps_left == 5
        progress.bars.refresh()
        for done in range(3):
            progress.watch_validation(done, 7)
        progress.bars.refresh()
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"run +\S+ +7/12 +ETA \d:\d\d:\d\d", said)
    assert re.search(r"epoch 2/3 +\S+ +3/4 +ETA \d:\d\d:\d\d +loss 2.500 lr 0.10000", said)
    assert re.search(r"validation +\S+ +2/7 +ETA \d:\d\d:\d\d", said)


def test_the_time_that_is_left_counts_steps_and_validations() -> None:
    remaining = RemainingTime(steps=8, batches=4, validations=2)
    assert remaining.of_run() is None
    assert format_seconds(remaining.of_epoch()) == "-:--:--"
    remaining.add_step(2.0)
    remaining.add_step(4.0)
    assert remaining.of_epoch() == 2 * 3.0
    assert remaining.of_run() == 6 * 3.0
    for _ in range(2):
        remaining.add_step(3.0)
    assert remaining.of_epoch() == 0.0
    remaining.add_validation(10.0)
    assert remaining.of_run() == 4 * 3.0 + 10.0
    assert format_seconds(3723.4) == "1:02:03"
