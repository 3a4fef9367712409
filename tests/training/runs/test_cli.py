"""``segserve runs`` on folders as train.py writes them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import pytest

from training.runs.checkpoint import PartOfEpoch, RunFolder, RunState, hold_run
from training.runs.cli import differing_options, summarise_run
from training.runs.environment import read_environment
from training.runs.log import EpochRecord, append_record

COMMAND = "from serving.cli import main; main()"


def make_run(path: Path, done: int, *, miou: float = math.nan, **options: object) -> RunFolder:
    """Three epochs planned, ``done`` finished; the last is the best where it has a score."""
    told: Mapping[str, object] = {
        "dataset": "camvid", "model": "icnet", "backbone": "resnet18", "epochs": 3, "lr": 0.01,
        "root": None, "scale_range": [0.5, 2.0], "run": str(path), **options,
    }  # fmt: skip
    run = RunFolder(path)
    run.start(told, read_environment())
    for epoch in range(1, done + 1):
        append_record(run.log, EpochRecord(epoch, 0.01, 3.0 / epoch, 60.0, 0.8, miou,
                                           validation_seconds=5.0))  # fmt: skip
        scored = RunState(epoch, miou, epoch - 1) if math.isfinite(miou) else RunState(epoch)
        with run.checkpoint(scored) as aside:
            aside.last.touch()
            aside.optimizer.touch()
    return run


def segserve(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, run in ``folder`` where neither framework can be imported."""
    hidden = "import sys; sys.modules.update(mxnet=None, torch=None, gluoncv=None); "
    command = [sys.executable, "-W", "error", "-c", hidden + COMMAND, "runs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_a_summary_tells_how_far_a_run_is(tmp_path: Path) -> None:
    make_run(tmp_path, 2, miou=0.25)
    found = summarise_run(tmp_path, "a")
    assert (found.state, found.epochs_done, found.epochs_planned) == ("stopped", 2, 3)
    assert (found.best_miou, found.best_epoch, found.last_loss) == (0.25, 2, 1.5)
    assert (found.seconds, found.dataset, found.model) == (130.0, "camvid", "icnet resnet18")
    assert found.started is not None
    with hold_run(tmp_path):
        assert summarise_run(tmp_path, "a").state == "running"


def test_an_epoch_without_its_checkpoint_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    append_record(run.log, EpochRecord(2, 0.01, 0.1, 60.0))
    found = summarise_run(tmp_path, "a")
    assert (found.epochs_done, found.last_loss, found.best_miou) == (1, 3.0, None)


def test_only_differing_options_are_told(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0)
    make_run(tmp_path / "b", 0, lr=0.02, ema=0.9, symbol="b/network-symbol.json")
    differing = [("ema", None, 0.9), ("lr", 0.01, 0.02)]
    assert differing_options(tmp_path / "a", tmp_path / "b") == differing
    RunFolder(tmp_path / "b").symbol.write_text("another network")
    assert differing_options(tmp_path / "a", tmp_path / "b") == [
        *differing, ("symbol", None, "b/network-symbol.json"),
    ]  # fmt: skip


def test_runs_are_listed_without_a_framework(tmp_path: Path) -> None:
    make_run(tmp_path / "camvid" / "icnet" / "done", 3, miou=0.5)
    make_run(tmp_path / "camvid" / "icnet" / "fresh", 0)
    within = make_run(tmp_path / "camvid" / "icnet" / "within", 1)
    with within.checkpoint(RunState(1, part=PartOfEpoch(40, 92, 40, 60.0, 9.0))) as aside:
        aside.last.touch()
        aside.optimizer.touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "options.json").write_text("{")
    done = segserve(tmp_path, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(rows) == {"broken", "camvid/icnet/done", "camvid/icnet/fresh",
                         "camvid/icnet/within"}  # fmt: skip
    for text in ("finished", "3/3", "50.0 % (epoch 3)", "1.0000", "0:03:15", "0 min ago"):
        assert text in rows["camvid/icnet/done"]
    assert "stopped" in rows["camvid/icnet/fresh"]
    assert "0/3" in rows["camvid/icnet/fresh"]
    assert "1/3 + 40/92" in rows["camvid/icnet/within"]
    assert "unreadable" in rows["broken"]
    assert f"warning: {tmp_path / 'broken'} is not a run folder" in done.stderr


def test_two_runs_are_set_side_by_side(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 3, miou=0.5)
    make_run(tmp_path / "b", 2, miou=0.25, lr=0.02)
    picture = tmp_path / "out" / "curves.png"
    done = segserve(
        tmp_path, "compare", "a", tmp_path / "b", "--folder", tmp_path, "--output", picture
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["lr", "0.01", "0.02"] in rows
    assert ["epochs", "3/3", "2/3"] in rows
    assert not any(row[:1] == ["dataset"] for row in rows)
    pixels = cv2.imread(str(picture))
    for blue, green, red in ((0xB2, 0x72, 0x00), (0x00, 0x5E, 0xD5)):
        assert (pixels == (blue, green, red)).all(2).sum() > 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--folder", "nowhere"), "nowhere is not a folder"),
        (("--folder", "."), "no runs below"),
        (("compare", "a", "b"), "a is not a folder or a run below runs"),
    ],
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = segserve(tmp_path, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
