"""The stages' benchmark: both ways run, and agree where they do the same."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from benchmarks import obvious
from benchmarks.stages import (
    SIZE,
    Comparison,
    Subjects,
    comparisons,
    logits_cases,
    make_subjects,
    measure,
    mixed_share,
    summarize,
)
from benchmarks.timing import MIN_TURNS, Timing, time_in_turn
from serving.formats.registry import encode
from serving.imaging import restore

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return make_subjects(None, REPOSITORY)


def test_runs_take_turns() -> None:
    calls: list[str] = []
    first, second = time_in_turn((lambda: calls.append("a"), lambda: calls.append("b")), 0.0)
    assert calls == ["a", "b"] * (MIN_TURNS + 1)
    assert len(first.walls) == len(first.cpus) == len(second.walls) == MIN_TURNS
    assert 0 <= first.cpu_ms(25) <= first.cpu_ms() <= first.cpu_ms(75)


def test_subjects_are_what_the_table_says(subjects: Subjects) -> None:
    assert subjects.photo.shape == (1024, 2048, 3)
    assert subjects.served.shape == (11, 88, 120)
    assert subjects.fine.shape == (11, 256, 512)
    assert subjects.noise.shape == (19, 256, 512)
    assert mixed_share(subjects.noise) > 0.99
    assert 0.01 < mixed_share(subjects.fine) < 0.5
    assert [stage.stage for stage in comparisons(subjects)][:2] == [
        "decode a JPEG",
        "resize to 352x480",
    ]


def test_onnx_runtime_restores_the_same(subjects: Subjects) -> None:
    logits = subjects.served
    labels, confidence = restore.labels_and_confidence(logits, SIZE, SIZE)
    assert (obvious.restore_by_onnx(logits, SIZE, 1)() == labels).mean() > 0.9999
    theirs = obvious.restore_both_by_onnx(logits, SIZE, 1)()
    assert (theirs[0] == labels).mean() > 0.9999
    assert np.abs(theirs[1].astype(int) - confidence).max() <= 1
    assert len(logits_cases(subjects)) == 3


def test_the_obvious_forms_hold_the_same(subjects: Subjects) -> None:
    view = subjects.view
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(obvious.png(view)))), view.labels)
    for theirs, mine in zip(
        json.loads(obvious.rle(view)),
        json.loads(encode(view, "rle").body)["annotations"],
        strict=True,
    ):
        assert theirs["segmentation"] == mine["segmentation"]
        assert coco.area(theirs["segmentation"]) == mine["area"]
    counts = [pixels for pixels, _ in obvious.statistics(view)]
    assert counts == np.unique(view.labels, return_counts=True)[1].tolist()


def test_a_row_tells_both_times(subjects: Subjects) -> None:
    png = next(stage for stage in comparisons(subjects) if stage.stage == "`png`")
    row = summarize(png, [measure(png, 0.0)])
    assert row.ours > 0
    assert row.theirs > 0
    assert row.line().startswith("| `png` | ")
    assert row.photo_ratios == (row.ratio,)


def test_photos_are_put_together_and_told_apart() -> None:
    stage = Comparison("stage", list, "other", list)
    fast, slow = Timing((2.0, 2.0, 2.0), (1.0, 1.0, 1.0)), Timing((8.0,) * 3, (4.0,) * 3)
    faster = Timing((1.0,) * 3, (0.5,) * 3)
    row = summarize(stage, [(fast, slow), (faster, slow)])
    assert (row.ours, row.theirs, row.runs) == (750.0, 4000.0, 6)
    assert row.ours_wall == 1500.0
    assert row.photo_ratios == (4.0, 8.0)
    assert row.line().endswith("| 5.3 (4.0-8.0) |")
