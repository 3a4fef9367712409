"""The confusion matrix as a picture: where the pixels of each class went."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.evaluation.report import Evaluation

# Above this many classes a cell is too small for a number.
MAX_NUMBERED = 40
# Cells below half a per cent stay empty, so that the others are found.
LEAST_SHOWN = 0.5
# ADE20K's names are lists of synonyms.
NAME_LENGTH = 24


@rc_context({"text.parse_math": False})
def draw_confusion(found: Evaluation, path: Path) -> None:
    """Writes a PNG: a row a true class, in per cent of its pixels; a class without any is gray."""
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
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12)
