"""``python -m benchmarks.studies.loader`` prints a row a setting; what its numbers mean."""

from __future__ import annotations

import time

import numpy as np
import typer
from typer.testing import CliRunner

from benchmarks.studies.loader import LoaderTiming, main, measure
from export.symbols.networks import IMAGENET
from training.datasets import Sample
from training.loader import Loader, Mixture
from training.transforms import Augmentation


class Slow:
    """Eight gray images, each of which takes 20 ms to read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        time.sleep(0.02)
        return np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)

    def name(self, index: int) -> str:
        return str(index)


def timing(step_seconds: float) -> LoaderTiming:
    loader = Loader(
        Mixture(Slow(), None, 0.0), Augmentation(8, 8, 8), num_classes=1, batch_size=2,
        workers=1, seed=1, pixels=IMAGENET, prefetch=1,
    )  # fmt: skip
    return measure(loader, 6, step_seconds)


def test_a_loader_that_sleeps_is_no_faster_than_its_sleep() -> None:
    measured = timing(0.0)
    assert (measured.workers, measured.prefetch) == (1, 1)
    # 50 a second at most, and two batches of the six may have been made before.
    assert 0 < measured.images_per_second < 100
    assert 0 < measured.waiting <= 1


def test_a_row_a_setting() -> None:
    app = typer.Typer()
    app.command()(main)
    line = "--crop-size 32x64 --base-size 64 --batch-size 2 --workers 1,2 --prefetch 2 --batches 1"
    result = CliRunner().invoke(app, [*line.split(), "--step-ms", "1"])
    assert result.exit_code == 0, result.output
    rows = [row for row in result.output.splitlines() if row.startswith(("| 1 |", "| 2 |"))]
    assert [row.split("|")[1:3] for row in rows] == [[" 1 ", " 2 "], [" 2 ", " 2 "]]
