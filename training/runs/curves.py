"""Curves of one or several runs as a picture: loss, learning rate, mIoU, pixel accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.runs.checkpoint import replacing
from training.runs.log import EpochRecord

# Okabe and Ito's colours: distinguishable with colour-blind eyes too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PANELS = (
    ("loss", "training loss"),
    ("learning_rate", "learning rate"),
    ("miou", "validation mIoU, %"),
    ("pixel_accuracy", "validation pixel accuracy, %"),
)
PERCENT = ("miou", "synthetic_miou", "pixel_accuracy")


def draw_curves(runs: Mapping[str, Sequence[EpochRecord]], path: Path) -> None:
    """Writes a PNG of the runs' epochs, one colour for each run; replaces the file whole.

    Where synthetic scenes were scored too, theirs is the dashed line. The best mIoU is marked.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex="all").reshape(-1)
    for axes, (column, title) in zip(panels, PANELS, strict=True):
        for color, (name, records) in zip(_cycle(len(runs)), runs.items(), strict=True):
            _draw(axes, column, name, color, records)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8, labelbottom=True)
        if axes.lines and (len(runs) > 1 or column == "miou"):
            axes.legend(fontsize=8)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _draw(axes: Axes, column: str, name: str, color: str, records: Sequence[EpochRecord]) -> None:
    epochs, values = points(records, column)
    label = name
    if column == "miou" and values:
        best = max(range(len(values)), key=values.__getitem__)
        axes.plot(epochs[best], values[best], marker="*", markersize=10, color=color)
        label = f"{name} (best {values[best]:.1f})"
    # A single epoch is a point, not a line.
    marker = "o" if len(epochs) < 20 else ""
    axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=3)
    if column == "miou":
        others = points(records, "synthetic_miou")
        if others[0]:
            axes.plot(*others, color=color, linestyle="--", label=f"{name}, synthetic scenes")


def points(records: Sequence[EpochRecord], column: str) -> tuple[list[int], list[float]]:
    """Returns the epochs and finite values of a column; shares are in percent."""
    scale = 100.0 if column in PERCENT else 1.0
    found = [(record.epoch, float(getattr(record, column)) * scale) for record in records]
    finite = [(epoch, value) for epoch, value in found if math.isfinite(value)]
    return [epoch for epoch, _ in finite], [value for _, value in finite]


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]
