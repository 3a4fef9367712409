"""Writes an evaluation's tables, confusion matrix and example images."""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from export.datasets import IGNORE_LABEL
from serving.palette import IGNORE_COLOR, Color, LabelSet, plte
from training.datasets import SegmentationDataset
from training.evaluation.report import Evaluation, percent, write_tables
from training.evaluation.scoring import ImageScore, Predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("image", "truth", "prediction", "errors")
WRONG: Color = (255, 40, 60)
# Dimmed, but never so dark that a street at night is a black picture.
DIMMED, LIFTED = 0.4, 30.0
# A panel is at most so wide, and at least so wide that its caption fits.
PANEL_WIDTH = 400
GAP = 6
LINE = 20
FONT_SIZE = 14

# Above this many classes a cell is too small for a number.
MAX_NUMBERED = 40
# Cells below half a per cent stay empty, so that the others are found.
LEAST_SHOWN = 0.5
# ADE20K's names are lists of synonyms.
NAME_LENGTH = 24

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Choice:
    """An image and the reason why it was chosen: ``worst``, ``median`` or ``best``."""

    rank: str
    score: ImageScore


@dataclass(frozen=True)
class Example:
    """A chosen image, uint8 ``[H,W,3]`` RGB, with its label maps, uint8 ``[H,W]``."""

    choice: Choice
    image: Pixels
    truth: Pixels
    prediction: Pixels


def choose(scores: Sequence[ImageScore], each: int) -> tuple[Choice, ...]:
    """Returns the ``each`` worst, median and best images by their own mIoU, none twice."""
    order = sorted(
        (score for score in scores if not math.isnan(score.mean_iou)),
        key=lambda score: (score.mean_iou, score.index),
    )
    middle = max(0, (len(order) - each) // 2)
    groups = {
        "worst": order[:each],
        "best": order[::-1][:each],
        "median": order[middle : middle + each],
    }
    taken: set[int] = set()
    chosen: dict[str, list[Choice]] = {}
    for rank, group in groups.items():
        fresh = [score for score in group if score.index not in taken]
        taken |= {score.index for score in fresh}
        chosen[rank] = [Choice(rank, score) for score in fresh]
    return (*chosen["worst"], *chosen["median"], *chosen["best"])


def draw_errors(image: Pixels, truth: Pixels, prediction: Pixels) -> Pixels:
    """Returns the image dimmed, with wrong pixels in :data:`WRONG` and ignored ones marked."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) * DIMMED + LIFTED
    errors = np.repeat(gray[..., None], 3, axis=2)
    ignored = truth == IGNORE_LABEL
    errors[ignored] = 0.5 * errors[ignored] + 0.5 * np.array(IGNORE_COLOR, np.float32)
    errors[~ignored & (truth != prediction)] = WRONG
    return errors.astype(np.uint8)


def draw_grid(examples: Sequence[Example], labels: LabelSet, path: Path) -> None:
    """Writes a PNG: a row for each example, its scores above it, the classes' colours below all."""
    font = ImageFont.load_default(size=FONT_SIZE)
    colors = np.frombuffer(plte(labels.colors, labels.ignore_label), np.uint8).reshape(-1, 3)
    rows = [
        _hstack(
            [
                _fit(panel)
                for panel in (
                    example.image,
                    colors[example.truth],
                    colors[example.prediction],
                    draw_errors(example.image, example.truth, example.prediction),
                )
            ]
        )
        for example in examples
    ]
    width = max(row.shape[1] for row in rows)
    legend = _draw_legend(labels, width, font)
    height = LINE + sum(row.shape[0] + LINE + GAP for row in rows) + legend.height
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(COLUMNS):
        draw.text((column * (PANEL_WIDTH + GAP) + 2, 1), title, fill="black", font=font)
    top = LINE
    for example, row in zip(examples, rows, strict=True):
        score = example.choice.score
        caption = (
            f"{example.choice.rank}: mIoU {percent(score.mean_iou)}, "
            f"pixAcc {percent(score.pixel_accuracy)}   {Path(score.name).name}"
        )
        draw.text((2, top + 1), caption, fill="black", font=font)
        picture.paste(Image.fromarray(row), (0, top + LINE))
        top += row.shape[0] + LINE + GAP
    picture.paste(legend, (0, top))
    picture.save(path, "PNG")


def _fit(panel: Pixels) -> Pixels:
    """Returns a panel of :data:`PANEL_WIDTH`."""
    height, width = panel.shape[:2]
    smaller = width > PANEL_WIDTH
    size = (PANEL_WIDTH, max(1, round(height * PANEL_WIDTH / width)))
    filtering = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(panel, size, interpolation=filtering), np.uint8)


def _hstack(panels: list[Pixels]) -> Pixels:
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    return np.hstack([part for panel in panels for part in (gap, panel)][1:])


def _draw_legend(
    labels: LabelSet, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> Image.Image:
    """Draws colours and names, as many on each line as fit."""
    entries: list[tuple[str, Color]] = list(zip(labels.names, labels.colors, strict=True))
    entries += [("(ignored)", IGNORE_COLOR), ("(wrong)", WRONG)]
    step = max(int(font.getlength(name)) for name, _ in entries) + 34
    a_line = max(1, width // step)
    legend = Image.new("RGB", (width, LINE * math.ceil(len(entries) / a_line) + GAP), "white")
    draw = ImageDraw.Draw(legend)
    for index, (name, color) in enumerate(entries):
        left, top = index % a_line * step + 2, index // a_line * LINE + 3
        draw.rectangle((left, top, left + 14, top + 14), fill=color, outline="#888888")
        draw.text((left + 20, top - 1), name, fill="black", font=font)
    return legend


def draw_confusion(found: Evaluation, path: Path) -> None:
    """Writes a PNG: a row for each true class, in per cent of its pixels; a class without any is
    gray.
    """
    # Only here: other evaluations do without matplotlib.
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        _draw_confusion(found).savefig(path, bbox_inches="tight", pad_inches=0.12)


def _draw_confusion(found: Evaluation) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(found.confusion, np.float64)
    totals = counts.sum(1, keepdims=True)
    # NaN is drawn as nothing: the gray behind it shows.
    shares = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    names = [textwrap.shorten(e.name, NAME_LENGTH, placeholder="…") for e in found.classes]
    numbered = len(names) <= MAX_NUMBERED
    cell, font = (0.46, 8) if numbered else (0.15, 5)
    side = cell * len(names)
    figure = Figure(figsize=(side, side), dpi=130)
    FigureCanvasAgg(figure)
    # The cells alone fill the figure; saving makes room for what is written around them.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("#dddddd")
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=font)
    axes.set_yticks(ticks, names, fontsize=font)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("prediction", fontsize=9)
    axes.set_ylabel("truth", fontsize=9)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1 if numbered else 0.3)
    axes.tick_params(which="minor", length=0)
    if numbered:
        for (row, column), value in np.ndenumerate(shares):
            if value >= LEAST_SHOWN:
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=7.5,
                    color="white" if value > 55 else "#222222",
                    fontweight="bold" if row == column else "normal",
                )  # fmt: skip
    bar = figure.add_axes((1 + 0.15 / side, 0, 0.15 / side, 1))
    figure.colorbar(picture, cax=bar, format="%d %%").ax.tick_params(labelsize=7)
    axes.set_title(
        f"{found.title}: per cent of each true class",
        fontsize=9,
        loc="left",
        pad=10,
    )
    return figure


def check_matplotlib() -> None:
    """Raises ValueError if matplotlib is missing, before minutes are spent on scores."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--output draws the confusion matrix with matplotlib, which is missing; install it "
            "with: pip install 'segserve[training]' (or matplotlib alone), or leave --output out"
        )


def read_examples(
    samples: SegmentationDataset, predict: Predict, choices: Sequence[Choice]
) -> tuple[Example, ...]:
    """Returns the chosen images with new predictions: keeping all of them could take gigabytes."""
    found = []
    for choice in choices:
        index = choice.score.index
        image, truth = samples[index]
        found.append(Example(choice, image, truth, predict(index, image)))
    return tuple(found)


def write_output(
    found: Evaluation, shown: tuple[Example, ...], labels: LabelSet, folder: Path
) -> None:
    """Writes the tables, ``confusion.png``, and ``examples.png`` if any image could be scored."""
    write_tables(found, folder)
    draw_confusion(found, folder / "confusion.png")
    if shown:
        draw_grid(shown, labels, folder / "examples.png")
