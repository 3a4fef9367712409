"""Which images are shown, and what the pictures of errors and confusions say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.precision.confusion_matrix import ConfusionMatrix
from serving.palette import IGNORE_COLOR, LabelSet
from training.evaluation.boundaries import BoundaryScore
from training.evaluation.output import (
    PANEL_WIDTH,
    WRONG,
    Choice,
    Example,
    choose,
    draw_confusion,
    draw_errors,
    draw_grid,
)
from training.evaluation.report import Subject, summarise
from training.evaluation.scoring import ImageScore, Scores

LABELS = LabelSet(("road", "tree", "sky"), ((128, 64, 128), (0, 128, 0), (0, 0, 255)))


def ranked(*scores: float) -> tuple[ImageScore, ...]:
    return tuple(ImageScore(k, f"{k}.png", score, score) for k, score in enumerate(scores))


def chosen(scores: tuple[ImageScore, ...], each: int) -> list[tuple[str, int]]:
    return [(choice.rank, choice.score.index) for choice in choose(scores, each)]


def test_worst_median_and_best_are_chosen() -> None:
    scores = ranked(0.5, 0.9, 0.1, 0.7, 0.3, float("nan"), 0.6)
    assert chosen(scores, 1) == [("worst", 2), ("median", 0), ("best", 1)]
    assert chosen(scores, 2) == [
        ("worst", 2), ("worst", 4), ("median", 0), ("median", 6), ("best", 1), ("best", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_no_image_is_shown_twice(count: int) -> None:
    indices = [index for _, index in chosen(ranked(*np.linspace(0, 1, count)), 2)]
    assert sorted(indices) == list(range(count))


def test_errors_are_marked_and_ignored_pixels_are_no_errors() -> None:
    image = np.full((2, 3, 3), 200, np.uint8)
    truth = np.array([[0, 1, 255], [2, 2, 255]], np.uint8)
    prediction = np.array([[0, 2, 1], [2, 0, 255]], np.uint8)
    errors = draw_errors(image, truth, prediction)
    assert errors[0, 1].tolist() == errors[1, 1].tolist() == list(WRONG)
    assert errors[0, 0].tolist() == errors[1, 0].tolist() == [110, 110, 110]
    ignored = [int(0.5 * 110 + 0.5 * part) for part in IGNORE_COLOR]
    assert errors[0, 2].tolist() == errors[1, 2].tolist() == ignored


def test_the_grid_shows_the_maps_in_the_classes_colours(tmp_path: Path) -> None:
    truth = np.zeros((60, 80), np.uint8)
    truth[:, 40:] = 2
    prediction = np.zeros((60, 80), np.uint8)
    prediction[30:, 40:] = 1
    image = np.full((60, 80, 3), 100, np.uint8)
    example = Example(Choice("worst", ranked(0.3)[0]), image, truth, prediction)
    draw_grid([example, example], LABELS, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as opened:
        picture = np.asarray(opened.convert("RGB"))
    assert 4 * PANEL_WIDTH < picture.shape[1] < 4 * PANEL_WIDTH + 40
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert {*LABELS.colors, WRONG, (100, 100, 100)} <= colors
    wrong = (picture == WRONG).all(-1).mean()
    panel = 2 * (PANEL_WIDTH * PANEL_WIDTH * 60 // 80)
    assert wrong * picture.shape[0] * picture.shape[1] == pytest.approx(panel / 2, rel=0.02)


def test_the_diagonal_of_a_good_model_is_dark_and_absent_classes_are_gray(tmp_path: Path) -> None:
    confusion = ConfusionMatrix(3)
    confusion.matrix[:2, :2] = [[100, 0], [50, 50]]
    subject = Subject("m", "1", "here", "folder", "val", 0.0075)
    found = summarise(Scores(confusion, BoundaryScore(3), ()), ("a $x$ b", "<t>", "s"), subject)
    draw_confusion(found, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as opened:
        picture = np.asarray(opened.convert("RGB")).astype(int)
    dark = (np.abs(picture - (8, 48, 107)).sum(-1) < 12).mean()
    gray = (picture == 0xDD).all(-1).mean()
    assert gray > 0.05, "three cells of nine"
    assert dark > gray / 5, "one cell, but for the number in it"
    assert [entry.accuracy for entry in found.classes] == [1.0, 0.5, None]
    many = dataclasses.replace(
        found,
        classes=found.classes * 30,
        confusion=tuple(map(tuple, np.eye(90, dtype=int).tolist())),
    )
    draw_confusion(many, tmp_path / "many.png")
