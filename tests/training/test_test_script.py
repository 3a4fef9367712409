"""``train.py --recipe`` for two steps, and ``test.py`` on what it wrote, with both trainers."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.geometry import Size
from serving.palette import load_labels
from training.evaluation.trained_model import TrainedModel, softmax
from training.evaluation.weights_options import at_size, parse_evaluation

SCRIPTS = Path(__file__).resolve().parents[2] / "training"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NETWORK = "--backbone resnet18 --width 0.25 --crop-size 64x96 --base-size 96 --ngpus 0 --workers 1"

needs_mxnet = pytest.mark.skipif(
    importlib.util.find_spec("mxnet") is None, reason="mxnet is not installed (extra 'training')"
)


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes(
    tmp_path_factory: pytest.TempPathFactory, write_scenes: Callable[[Path, dict[str, int]], Path]
) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 4, "val": 2})


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a published recipe, on smaller data and a smaller network."""
    runs = tmp_path_factory.mktemp("runs")
    done = call(
        "train.py", "--recipe", "icnet_resnet50_citys", "--trainer", "torch", *NETWORK.split(),
        "--dataset", "camvid", "--root", str(scenes), "--batch-size", "2", "--epochs", "1",
        "--save-dir", str(runs), "--checkname", "tiny",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return runs / "camvid" / "icnet" / "tiny"


@pytest.mark.slow
@needs_mxnet
def test_a_recipe_trains(run: Path) -> None:
    options = json.loads((run / "options.json").read_text())
    assert options["loss_weights"] == [2.0, 1.0, 1.0]
    assert (options["lr"], options["epochs"], options["backbone"]) == (0.01, 1, "resnet18")
    with (run / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) > 1.0
    assert int(row["skipped_steps"]) == 0


@pytest.mark.slow
@needs_mxnet
def test_scores_are_those_of_the_validation(run: Path, tmp_path: Path) -> None:
    with (run / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    done = call("test.py", "--eval", "--resume", str(run), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "2 images; network at 64x96" in done.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["mean_iou"] == pytest.approx(float(row["miou"]), abs=1e-4)
    assert scores["pixel_accuracy"] == pytest.approx(float(row["pixel_accuracy"]), abs=1e-4)
    assert scores["images"] == 2


@pytest.mark.slow
@needs_mxnet
@pytest.mark.parametrize("trainer", ["gluon", "torch"])
def test_a_file_of_weights_at_another_size(
    run: Path, scenes: Path, tmp_path: Path, trainer: str
) -> None:
    line = (
        f"--trainer {trainer} --dataset camvid --root {scenes} --model icnet {NETWORK} --eval"
        f" --resume {run / 'best.params'} --size 32x64 --flip --limit 1 --output {tmp_path}"
    )
    done = call("test.py", *shlex.split(line))
    assert done.returncode == 0, done.stderr
    assert "network at 32x64" in done.stdout
    assert "network an image: median" in done.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 1


@pytest.mark.slow
@needs_mxnet
def test_without_eval_predictions_are_written_in_colour(run: Path, tmp_path: Path) -> None:
    done = call("test.py", "--resume", str(run), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["000.png", "001.png"]
    with Image.open(tmp_path / "out" / "000.png") as picture:
        assert (picture.mode, picture.size) == ("P", (96, 64))
        palette = picture.getpalette() or []
        assert np.asarray(picture).max() < 11
    assert palette[:33] == [part for color in load_labels("camvid").colors for part in color]


class Halves:
    """A learner whose left half is class 0 and right half class 1, surer on the left."""

    def logits(self, image: np.ndarray) -> np.ndarray:
        maps = np.zeros((2, 4, 4), np.float32)
        maps[0, :, :2], maps[1, :, 2:] = 1000.0, 0.5
        return maps


def test_flipping_averages_probabilities() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    plain = TrainedModel(Halves(), Size(32, 32)).label(image)
    assert (plain[16, 0], plain[16, 31]) == (0, 1)
    both = TrainedModel(Halves(), Size(32, 32), flip=True)
    assert both.label(image)[16].tolist() == [0] * 32, "the mirror image is sure of class 0 there"
    assert np.isfinite(softmax(Halves().logits(image))).all()
    assert np.isnan(both.percentile_ms(50))


def test_the_published_command_means_what_it_says(tmp_path: Path) -> None:
    options = parse_evaluation(
        shlex.split(
            "--dataset citys --model icnet --backbone resnet50 --syncbn --ngpus 1 --base-size 2048"
            f" --workers 48 --eval --resume {tmp_path / 'x.params'}"
        )
    )
    assert (options.run.dataset, options.run.model, options.score) == ("citys", "icnet", True)
    assert options.weights == tmp_path / "x.params"
    assert (options.size, options.split, options.output) == (None, "val", None)
    larger = at_size(options, (1024, 2048))
    assert (larger.height, larger.crop_width) == (1024, 2048)


def test_a_symbol_of_a_run_serves_only_its_own_size(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text('{"trainer": "torch", "height": 64, "crop_width": 96}')
    (tmp_path / "network-symbol.json").touch()
    options = parse_evaluation(["--eval", "--resume", str(tmp_path)])
    assert at_size(options, (64, 96)).symbol == tmp_path / "network-symbol.json"
    assert at_size(options, (96, 96)).symbol is None


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_evaluation(["--eval", "--save-dir", str(tmp_path)])
    assert "--resume names the weights" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        parse_evaluation(["--help"])
    assert stopped.value.code == 0
    assert "--base-size" in capsys.readouterr().out
