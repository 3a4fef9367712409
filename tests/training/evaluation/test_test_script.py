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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.symbols.networks import IMAGENET
from serving.imaging.geometry import Size
from serving.palette import load_labels
from training.evaluation import trained_model
from training.evaluation.evaluator import count_gpus, process_environment
from training.evaluation.options import at_size, parse_evaluation
from training.evaluation.report import summarise_time
from training.evaluation.sliding_windows import SlidingWindows, softmax
from training.evaluation.trained_model import TrainedModel
from training.options import TrainOptions, parse_options

SCRIPTS = Path(__file__).resolve().parents[3] / "training"
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


def read_scores(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


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
    line = f"--eval --resume {run} --output {tmp_path} --legacy-miou --examples 1"
    done = call("test.py", *line.split())
    assert done.returncode == 0, done.stderr
    assert "2 images; testval: images in their own size; network at each image's" in done.stdout
    scores = read_scores(tmp_path)
    assert scores["mean_iou"] == pytest.approx(float(row["miou"]), abs=1e-4)
    assert scores["pixel_accuracy"] == pytest.approx(float(row["pixel_accuracy"]), abs=1e-4)
    assert scores["images"] == scores["time"]["images"] == 2
    present = [entry["iou"] for entry in scores["classes"] if entry["iou"] is not None]
    assert scores["legacy_mean_iou"] == pytest.approx(sum(present) / 11)
    assert f"GluonCV's mIoU (absent classes as 0) {100 * sum(present) / 11:.2f} %" in done.stdout
    assert 0 <= scores["mean_boundary_f"] <= 1
    times = scores["time"]
    assert times["name"] == "t_cpu"
    assert 0 < times["median_ms"] <= times["p95_ms"] <= times["p99_ms"]
    assert f"t_cpu {times['mean_ms']:.2f} ms an image, " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classes.csv", "confusion.png", "evaluation.json", "examples.png", "images.csv",
    ]  # fmt: skip
    with Image.open(tmp_path / "examples.png") as picture:
        assert picture.width > 1600, "image, truth, prediction, errors"


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
    assert "network at 32x64, with mirror images" in done.stdout
    assert read_scores(tmp_path)["images"] == 1


@pytest.mark.slow
@needs_mxnet
def test_both_trainers_score_alike_on_centre_crops_under_sliding_windows(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    """Two scales of the centre 64x64, in windows of 64, mirrored; one of them in two processes."""
    network = "--backbone resnet18 --width 0.25 --crop-size 64 --base-size 64 --ngpus 0"
    line = (
        f"--dataset camvid --root {scenes} --model icnet {network} --eval --mode val"
        f" --resume {run / 'best.params'} --scales 0.75,1.5 --flip"
    )
    found = []
    for trainer, more in (("torch", ""), ("gluon", "--processes 2")):
        output = tmp_path / trainer
        done = call("test.py", *shlex.split(f"{line} --trainer {trainer} {more} --output {output}"))
        assert done.returncode == 0, done.stderr
        assert "val: centre crops of 64x64; scales 0.75, 1.5 of 64, windows of 64x64" in done.stdout
        found.append(read_scores(output))
    one, other = found
    pixels = np.array(one["confusion"])
    assert pixels.sum() <= 2 * 64 * 64
    apart = np.abs(pixels - np.array(other["confusion"])).sum() / pixels.sum()
    assert apart < 0.002, "float kernels differ"
    assert one["mean_iou"] == pytest.approx(other["mean_iou"], abs=2e-3)


@pytest.mark.slow
@needs_mxnet
def test_two_processes_score_as_one(run: Path, scenes: Path, tmp_path: Path) -> None:
    line = f"--eval --split train --resume {run} --limit 3"
    found = []
    for count in (1, 2):
        output = tmp_path / str(count)
        done = call("test.py", *f"{line} --processes {count} --output {output}".split())
        assert done.returncode == 0, done.stderr
        assert ("3 images, 2 processes; " in done.stdout) == (count == 2)
        found.append(read_scores(output))
    one, two = found
    assert one["time"]["images"] == two["time"]["images"] == 3
    assert two["mean_boundary_f"] == pytest.approx(one["mean_boundary_f"], rel=1e-12)
    for name in ("confusion", "per_image", "mean_iou", "pixel_accuracy", "legacy_mean_iou"):
        assert two[name] == one[name], name
    assert [Path(image["name"]).stem for image in two["per_image"]] == ["000", "001", "002"]
    grids = [np.asarray(Image.open(tmp_path / count / "examples.png")) for count in "12"]
    np.testing.assert_array_equal(*grids)


@pytest.mark.slow
@needs_mxnet
def test_an_error_in_another_process_names_the_image(
    run: Path, tmp_path: Path, write_scenes: Callable[[Path, dict[str, int]], Path]
) -> None:
    root = write_scenes(tmp_path / "scenes", {"val": 2})
    Image.fromarray(np.full((64, 96), 99, np.uint8)).save(root / "valannot" / "001.png")
    line = f"--eval --resume {run} --processes 2 --root {root}"
    done = call("test.py", *line.split())
    assert done.returncode == 1
    assert done.stderr.startswith("test.py: ")
    assert "001.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@needs_mxnet
def test_without_eval_predictions_are_written_in_colour(run: Path, tmp_path: Path) -> None:
    line = f"--resume {run} --processes 2 --output {tmp_path / 'out'}"
    done = call("test.py", *line.split())
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


class Networks:
    """Notes the sizes that are asked for."""

    def __init__(self) -> None:
        self.sizes: list[Size] = []

    def at(self, size: Size) -> Halves:
        self.sizes.append(size)
        return Halves()


def test_flipping_averages_probabilities() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    plain = TrainedModel(Networks(), IMAGENET, Size(32, 32)).label(image)
    assert (plain[16, 0], plain[16, 31]) == (0, 1)
    both = TrainedModel(Networks(), IMAGENET, Size(32, 32), flip=True)
    assert both.label(image)[16].tolist() == [0] * 32, "the mirror image is sure of class 0 there"
    assert np.isfinite(softmax(Halves().logits(image))).all()
    assert len(both.seconds) == 1


def test_every_image_has_a_network_of_its_own_size() -> None:
    networks = Networks()
    model = TrainedModel(networks, IMAGENET)
    for shape in ((500, 375), (64, 96), (20, 1000)):
        assert model.label(np.zeros((*shape, 3), np.uint8)).shape == shape
    assert networks.sizes == [Size(512, 384), Size(64, 96), Size(32, 992)]
    windows = SlidingWindows(Size(24, 24), 40, IMAGENET, (1.0,), flip=True)
    model = TrainedModel(networks, IMAGENET, windows=windows)
    assert model.label(np.zeros((30, 44, 3), np.uint8)).shape == (30, 44)
    assert set(networks.sizes[3:]) == {Size(24, 24)}


def test_few_networks_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[int] = []
    learner = SimpleNamespace(
        read_parameters=lambda path: None, logits=lambda image: image, close=lambda: None
    )

    def make(options: TrainOptions, num_classes: int) -> SimpleNamespace:
        made.append(options.height)
        return learner

    monkeypatch.setattr(trained_model, "make_learner", make)
    options = parse_evaluation(["--eval", "--resume", str(tmp_path / "x.params")])
    networks = trained_model.SizedNetworks(options, 11)
    for height in (*range(32, 352, 32), 320, 32):
        networks.at(Size(height, 64))
    assert made == [*range(32, 352, 32), 32], "the first was dropped, the last was not"


def test_times_are_percentiles_of_the_images() -> None:
    found = summarise_time([0.001 * k for k in range(1, 101)], on_gpu=True)
    assert found is not None
    assert (found.name, found.images) == ("t_gpu", 100)
    assert found.mean_ms == pytest.approx(50.5)
    assert (found.median_ms, found.p95_ms, found.p99_ms) == pytest.approx((50.5, 95.05, 99.01))
    assert summarise_time([], on_gpu=False) is None


def test_each_process_has_a_gpu_or_some_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert process_environment(2, 4, 4) == {"CUDA_VISIBLE_DEVICES": "2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert process_environment(1, 2, 2) == {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    assert process_environment(2, 3, 2) == {"CUDA_VISIBLE_DEVICES": "5"}, "three share two"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert process_environment(0, 4, 0) == {"OMP_NUM_THREADS": "2"}
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for flags, count in (("--ngpus 8", 4), ("--ngpus 2", 2), ("", 0), ("--ngpus 8 --no-cuda", 0)):
        run = parse_options(["--trainer", "torch", "--eval", *flags.split()])
        assert count_gpus(run) == count


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
    assert (options.mode, options.scales, options.flip) == ("testval", (), False)
    larger = at_size(options, Size(1024, 2048))
    assert (larger.height, larger.crop_width) == (1024, 2048)


def test_a_symbol_of_a_run_serves_only_its_own_size_and_stride(tmp_path: Path) -> None:
    saved = {
        "trainer": "torch", "height": 64, "crop_width": 96, "output_stride": 16,
        "backbone": "resnet50",
    }  # fmt: skip
    (tmp_path / "options.json").write_text(json.dumps(saved))
    (tmp_path / "network-symbol.json").touch()
    options = parse_evaluation(["--eval", "--resume", str(tmp_path)])
    assert at_size(options, Size(64, 96)).symbol == tmp_path / "network-symbol.json"
    assert at_size(options, Size(96, 96)).symbol is None
    other = parse_evaluation(["--eval", "--resume", str(tmp_path), "--output-stride", "8"])
    assert at_size(other, Size(64, 96)).symbol is None
    assert at_size(other, Size(64, 96)).output_stride == 8
    other = parse_evaluation(["--eval", "--resume", str(tmp_path), "--backbone", "resnet34"])
    assert at_size(other, Size(64, 96)).symbol is None


def test_wrong_flags_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        ("--scales 1,0", "--scales are above 0"),
        ("--scales 1 --size 64", "leave --size out"),
        ("--processes 0", "--processes is at least 1"),
        ("--limit 0", "--limit is at least 1"),
        ("--boundary-tolerance 2", "0 to 1"),
        ("--mode test", "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            parse_evaluation(["--eval", "--resume", str(tmp_path / "x.params"), *flags.split()])
        assert message in capsys.readouterr().err
    val = parse_evaluation(
        ["--eval", "--resume", str(tmp_path / "x.params"), "--mode", "val", "--crop-size", "768"]
    )
    assert val.size == Size(768, 768)
    assert val.protocol() == "val: centre crops of 768x768; network at 768x768"


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_evaluation(["--eval", "--save-dir", str(tmp_path)])
    assert "--resume is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        parse_evaluation(["--help"])
    assert stopped.value.code == 0
    assert "--base-size" in capsys.readouterr().out
