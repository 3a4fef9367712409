"""Reports the scores of one model as JSON, tables and text."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.evaluation.scoring import Scores


@dataclass(frozen=True)
class ClassScore:
    """The scores (0-1) of one class.

    Attributes:
        iou: None where neither a label nor an answer holds it.
        accuracy: share of its pixels that are right; None where no label holds it.
        share: of the labelled pixels.
        boundary_f: None if no image has a boundary of it, or none was scored.
        boundary_images: how many images that is the mean of.
    """

    id: int
    name: str
    iou: float | None
    accuracy: float | None
    share: float
    boundary_f: float | None
    boundary_images: int


@dataclass(frozen=True)
class ImageResult:
    """The scores (0-1) of one image; None if every pixel is ignored."""

    name: str
    mean_iou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model, 0-1; None if there is nothing to count.

    Attributes:
        model: name and version of what answered; a family's members are all named.
        server: its address, the repository that was run in this process, or the file of weights.
        protocol: how images were shown to the network, where that was this process's choice.
        mean_iou, mean_accuracy, mean_boundary_f: over the classes that have one.
        legacy_mean_iou: over all classes, absent ones as 0: GluonCV's.
        boundary_tolerance: share of the diagonal; 0 where no boundary was scored.
        absent: classes without IoU, which the mean leaves out.
        confusion: pixels, ``confusion[truth][prediction]``.
    """

    model: str
    version: str
    server: str
    dataset: str
    split: str
    images: int
    mean_iou: float | None
    legacy_mean_iou: float | None
    pixel_accuracy: float | None
    mean_accuracy: float | None
    mean_boundary_f: float | None
    boundary_tolerance: float
    classes: tuple[ClassScore, ...]
    absent: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    per_image: tuple[ImageResult, ...]
    protocol: str = ""
    time: NetworkTime | None = None

    @property
    def title(self) -> str:
        """Returns the model and its data; a file of weights has no version."""
        version = f" v{self.version}" if self.version else ""
        return f"{self.model}{version}, {self.dataset} {self.split}"


@dataclass(frozen=True)
class Subject:
    """A description of what was scored, on what, and how."""

    model: str
    version: str
    server: str
    dataset: str
    split: str
    boundary_tolerance: float
    protocol: str = ""


def summarise(
    scores: Scores, names: tuple[str, ...], subject: Subject, time: NetworkTime | None = None
) -> Evaluation:
    """Returns the scores by name."""
    confusion, boundary = scores.confusion, scores.boundary
    ious = confusion.intersection_over_union.tolist()
    accuracies = confusion.class_accuracy.tolist()
    shares = confusion.class_shares.tolist()
    outlines = boundary.classes.tolist() if boundary else [math.nan] * len(names)
    outlined = boundary.images.tolist() if boundary else [0] * len(names)
    return Evaluation(
        **asdict(subject),
        images=len(scores.images),
        mean_iou=_finite(confusion.mean_iou),
        legacy_mean_iou=_finite(confusion.legacy_mean_iou) if scores.images else None,
        pixel_accuracy=_finite(confusion.pixel_accuracy),
        mean_accuracy=_finite(confusion.mean_accuracy),
        mean_boundary_f=_finite(boundary.mean) if boundary else None,
        classes=tuple(
            ClassScore(
                id=index,
                name=name,
                iou=_finite(ious[index]),
                accuracy=_finite(accuracies[index]),
                share=shares[index],
                boundary_f=_finite(outlines[index]),
                boundary_images=outlined[index],
            )
            for index, name in enumerate(names)
        ),
        absent=tuple(names[index] for index in confusion.absent),
        confusion=tuple(tuple(row) for row in confusion.matrix.tolist()),
        per_image=tuple(
            ImageResult(image.name, _finite(image.mean_iou), _finite(image.pixel_accuracy))
            for image in scores.images
        ),
        time=time,
    )


def to_json(found: Evaluation) -> str:
    return json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n"


def write_tables(found: Evaluation, folder: Path) -> tuple[Path, ...]:
    """Writes ``evaluation.json``, ``classes.csv`` and ``images.csv``; scores are 0-1, empty if
    there are none.
    """
    files = folder / "evaluation.json", folder / "classes.csv", folder / "images.csv"
    files[0].write_text(to_json(found), "utf-8")
    for file, rows in ((files[1], found.classes), (files[2], found.per_image)):
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(type(rows[0]).__dataclass_fields__ if rows else ())
            writer.writerows(asdict(row).values() for row in rows)
    return files


def print_evaluation(found: Evaluation, console: Console, legacy: bool = False) -> None:
    """Prints a table of the classes, then the totals; with ``legacy`` GluonCV's mean too."""
    table = Table("class", title=escape(found.title))
    columns = ["IoU", "accuracy", "share"] + (["boundary F"] if found.boundary_tolerance else [])
    for column in columns:
        table.add_column(column, justify="right")
    for entry in found.classes:
        cells = [entry.iou, entry.accuracy, entry.share, entry.boundary_f][: len(columns)]
        table.add_row(escape(entry.name), *(percent(value) for value in cells))
    console.print(table)
    if found.absent:
        absent = ", ".join(found.absent)
        line = f"left out of the mean (in no label, no answer): {absent}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.protocol:
        console.print(found.protocol, markup=False, highlight=False, soft_wrap=True)
    totals = (
        f"images {found.images}  mIoU {percent(found.mean_iou)}  "
        f"pixAcc {percent(found.pixel_accuracy)}  mean accuracy {percent(found.mean_accuracy)}"
    )
    if found.boundary_tolerance:
        totals += (
            f"  boundary F {percent(found.mean_boundary_f)} "
            f"(within {100 * found.boundary_tolerance:g} % of the diagonal)"
        )
    console.print(totals, soft_wrap=True, highlight=False)
    if legacy:
        line = f"GluonCV's mIoU (absent classes as 0) {percent(found.legacy_mean_iou)}"
        console.print(line, soft_wrap=True, highlight=False)
    if found.time is not None:
        console.print(found.time.text(), soft_wrap=True, highlight=False)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class NetworkTime:
    """The network's time in milliseconds per image, all views of it one after the other.

    Copies to and from the device are included, and it has finished; decoding, label maps and
    scores are not. Each size of the network was warmed up before.

    Attributes:
        name: ``t_gpu`` or ``t_cpu``.
    """

    name: str
    images: int
    mean_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float

    def text(self) -> str:
        """Returns one line for people."""
        return (
            f"{self.name} {self.mean_ms:.2f} ms an image, {1000 / self.mean_ms:.1f} fps "
            f"(median {self.median_ms:.2f}, 95 % below {self.p95_ms:.2f}, "
            f"99 % below {self.p99_ms:.2f})"
        )


def summarise_time(seconds: Sequence[float], on_gpu: bool) -> NetworkTime | None:
    """Summarises the seconds that each image took, under the published tables' names; None without
    any.
    """
    if not seconds:
        return None
    milliseconds = 1000 * np.asarray(seconds)
    median, p95, p99 = np.percentile(milliseconds, (50, 95, 99)).tolist()
    return NetworkTime(
        "t_gpu" if on_gpu else "t_cpu",
        len(seconds),
        float(milliseconds.mean()),
        median,
        p95,
        p99,
    )
