"""``python training/train.py`` on a dozen small scenes: its files, warnings, resuming, scoring."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.symbols.graph import read_symbol
from export.symbols.params import Parameters, read_params
from training.runs.checkpoint import RunFolder

TRAIN = Path(__file__).resolve().parents[2] / "training" / "train.py"
SCRIPTS = Path(__file__).parent / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NETWORK = "--model icnet --backbone resnet18 --width 0.25 --crop-size 64x96 --base-size 96"
# The schedule depends on the number of epochs, so every run here asks for the same two.
RECIPE = "--epochs 2 --batch-size 2 --lr 0.02 --scale-range 1,1.5 --log-interval 1 --clip-grad 50"
ITERATIONS = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mxnet") is None,
        reason="mxnet is not installed (extra 'training')",
    ),
]


def command(scenes: Path, runs: Path, *more: str) -> list[str]:
    """The command line; later flags beat earlier ones."""
    data = ["--dataset", "camvid", "--root", str(scenes), "--save-dir", str(runs)]
    return [sys.executable, str(TRAIN), *NETWORK.split(), *RECIPE.split(), *data, *more]


def train(scenes: Path, runs: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(scenes, runs, *more), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


def train_until(
    number: signal.Signals, place: tuple[int, int], scenes: Path, runs: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """The same, told to end before step ``place`` (epoch, iteration), both from 0."""
    python, *given = command(scenes, runs, *more)
    script = SCRIPTS / "signalled.py"
    return subprocess.run(
        [python, str(script), number.name, *map(str, place), *given],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip


def resume(run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Goes on with a run, without any of its flags."""
    return subprocess.run(
        [sys.executable, str(TRAIN), "--resume", str(run), *more],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip


def read_log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def largest_difference(one: Parameters, other: Parameters) -> float:
    assert sorted(one.names()) == sorted(other.names())
    return max(
        float(np.abs(np.subtract(one.find(name), other.find(name), dtype=np.float64)).max())
        for name in one.names()
    )


@pytest.fixture(scope="module")
def scenes(
    tmp_path_factory: pytest.TempPathFactory, write_scenes: Callable[[Path, dict[str, int]], Path]
) -> Path:
    lengths = {"train": 2 * ITERATIONS, "val": 3}
    return write_scenes(tmp_path_factory.mktemp("scenes"), lengths)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(scenes: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    """Two epochs without a break; asked for GPUs that are not there."""
    return train(scenes, runs, "--checkname", "whole", "--ngpus", "8", "--syncbn")


@pytest.fixture(scope="module")
def whole(runs: Path, finished: subprocess.CompletedProcess[str]) -> Path:
    assert finished.returncode == 0, finished.stderr
    return runs / "camvid" / "icnet" / "whole"


def test_gpus_that_are_not_there_are_one_warning(
    finished: subprocess.CompletedProcess[str],
) -> None:
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == (
        "train.py: warning: --ngpus 8: no GPU is available, training on the CPU\n"
    )


def test_the_run_folder_is_complete(whole: Path, scenes: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "best.params", "checkpoint-0002", "command.txt", "curves.png", "environment.json",
        "last.params", "log.csv", "network-symbol.json", "options.json", "run.lock", "tensorboard",
    ]  # fmt: skip
    assert "--ngpus 8 --syncbn" in (whole / "command.txt").read_text()
    options = json.loads((whole / "options.json").read_text())
    assert options["root"] == str(scenes)
    assert (options["height"], options["crop_width"], options["syncbn"]) == (64, 96, True)


def test_the_log_has_a_line_an_epoch(whole: Path, finished) -> None:
    rows = read_log(whole)
    assert list(rows[0]) == [
        "epoch", "learning_rate", "loss", "seconds", "pixel_accuracy", "miou", "synthetic_miou",
        "validation_seconds", "skipped_steps",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == ["1", "2"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([0.02, 0.02 * 0.5**0.9])
    assert all(0 < float(row["loss"]) < 20 for row in rows)
    assert all(0 <= float(row["miou"]) <= float(row["pixel_accuracy"]) <= 1 for row in rows)
    assert all(math.isnan(float(row["synthetic_miou"])) for row in rows)
    printed = re.findall(r"^epoch (\d) iteration (\d)/6 loss", finished.stdout, re.MULTILINE)
    assert printed == [(str(e), str(i)) for e in (1, 2) for i in range(1, ITERATIONS + 1)]


def test_the_state_names_the_best_epoch(whole: Path) -> None:
    state = RunFolder(whole).read_state()
    scores = [float(row["miou"]) for row in read_log(whole)]
    assert state.epochs_done == 2
    assert state.best_miou == max(scores)
    assert scores[state.best_epoch] == max(scores)


def test_weights_belong_to_the_symbol(whole: Path) -> None:
    """Without MXNet, as export reads them: every variable but the image has its array."""
    graph = read_symbol(whole / "network-symbol.json")
    variables = {node.name for node in graph.nodes if node.op == "null"} - {"data"}
    for name in ("last.params", "best.params"):
        parameters = read_params(whole / name)
        assert set(parameters.names()) == variables
        assert all(key.endswith(("_running_mean", "_running_var")) for key in parameters.auxiliary)
        assert all(np.isfinite(parameters.find(key)).all() for key in parameters.names())


def test_a_killed_run_resumes_to_the_same_weights(whole: Path, scenes: Path, runs: Path) -> None:
    """Killed in its second epoch; what that epoch had done is done again, with the same batches.

    The run's folder knows all flags of the command that was killed.
    """
    killed = runs / "camvid" / "icnet" / "killed"
    done = train_until(signal.SIGKILL, (1, 2), scenes, runs, "--checkname", "killed")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "epoch 2 iteration 2/" in done.stdout
    assert RunFolder(killed).read_state().epochs_done == 1
    assert len(read_log(killed)) == 1

    done = resume(killed)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert "epoch 1 iteration" not in done.stdout
    assert "epoch 2 iteration 1/6" in done.stdout
    for column in ("epoch", "learning_rate", "loss"):
        values, others = ([float(row[column]) for row in read_log(run)] for run in (killed, whole))
        assert values == pytest.approx(others, rel=1e-5)
    difference = largest_difference(
        read_params(killed / "last.params"), read_params(whole / "last.params")
    )
    assert difference < 1e-6


def test_eval_scores_the_best_weights_and_trains_nothing(whole: Path) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    done = resume(whole, "--eval")
    assert done.returncode == 0, done.stderr
    match = re.search(r"validation: pixAcc ([\d.]+) mIoU ([\d.]+)", done.stdout)
    assert match is not None, done.stdout
    best = RunFolder(whole).read_state().best_miou
    assert float(match[2]) == pytest.approx(best, abs=1e-4)
    assert "iteration" not in done.stdout
    after = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    assert after == before


def test_a_params_file_is_a_start_and_clipping_holds_it(
    whole: Path, scenes: Path, runs: Path
) -> None:
    """Gradients clipped to nothing move the running statistics only, in a run of its own."""
    done = train(
        scenes, runs, "--checkname", "held", "--resume", str(whole / "last.params"),
        "--epochs", "1", "--clip-grad", "1e-8", "--weight-decay", "0", "--no-val",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held = read_params(runs / "camvid" / "icnet" / "held" / "last.params")
    start = read_params(whole / "last.params")
    moved = {
        name: float(np.abs(np.subtract(held.find(name), start.find(name))).max())
        for name in start.names()
    }
    assert max(moved[name] for name in start.arguments) < 1e-6
    assert max(moved[name] for name in start.auxiliary) > 1e-3
    assert [row["epoch"] for row in read_log(runs / "camvid" / "icnet" / "held")] == ["1"]


def test_what_cannot_be_read_is_one_line(scenes: Path, runs: Path) -> None:
    done = train(scenes, runs, "--root", str(scenes / "nowhere"))
    assert done.returncode == 1
    assert done.stderr.startswith("train.py: no CamVid split 'train' under ")
    assert done.stderr.count("\n") == 1


def test_a_term_signal_keeps_the_step(scenes: Path, runs: Path) -> None:
    """In MXNet too; PyTorch's equality to an uninterrupted run is in test_resuming.py."""
    run = runs / "camvid" / "icnet" / "told"
    told = train_until(signal.SIGTERM, (1, 2), scenes, runs, "--checkname", run.name, "--no-val")
    assert told.returncode == 128 + signal.SIGTERM, told.stderr
    assert told.stderr.endswith(
        f"train.py: stopped by SIGTERM; --resume {run} continues from that step\n"
    )
    # The step that was under way is kept.
    assert RunFolder(run).read_state().place == (1, 3)
    done = resume(run)
    assert done.returncode == 0, done.stderr
    assert "epochs 2 to 2, from iteration 4 on" in done.stdout
    assert "epoch 2 iteration 3/" not in done.stdout
    assert RunFolder(run).read_state().place == (2, 0)
