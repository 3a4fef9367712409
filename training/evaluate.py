"""``segserve evaluate``: scores what a server serves on a dataset."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from segserve_client import SegserveError

from serving.palette import load_labels
from training.datasets import SegmentationDataset, canonical_name, open_dataset
from training.metrics import ConfusionMatrix
from training.scoring import Predict, ScoringError, score
from training.served_model import ServedModel, ServerError, open_model


@dataclass(frozen=True)
class ClassScore:
    """IoU (0-1) of one class; None where neither a label nor an answer holds it."""

    id: int
    name: str
    iou: float | None


@dataclass(frozen=True)
class Evaluation:
    """Scores of one served model, 0-1; None where there is nothing to count.

    Attributes:
        images: how many were scored.
        absent: classes without IoU, which the mean leaves out.
    """

    model: str
    version: str
    dataset: str
    split: str
    images: int
    pixel_accuracy: float | None
    mean_iou: float | None
    classes: tuple[ClassScore, ...]
    absent: tuple[str, ...]


def evaluate(
    model: Annotated[str, typer.Option(help="a model that the server has")],
    dataset: Annotated[str, typer.Option(help="camvid, synthetic, ...")],
    server: Annotated[
        str, typer.Option(help="HTTP host:port, or grpc://host:port")
    ] = "localhost:8000",
    root: Annotated[Path | None, typer.Option(help="folder of the dataset")] = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the scores here")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first images")] = None,
) -> None:
    """Score what a server serves: mIoU, pixel accuracy, each class."""
    console = Console(stderr=True)
    try:
        samples = open_dataset(dataset, split, root)
        names = dataset_classes(dataset)
        with open_model(server, model) as served:
            for line in check_classes(names, served.classes()):
                console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)
            confusion = score_with_progress(samples, served, len(names), limit, console)
            name, version = the_one_served(served)
    except (ScoringError, ServerError, SegserveError, ValueError, OSError) as error:
        sys.exit(f"segserve evaluate: {error}")
    images = len(samples) if limit is None else min(limit, len(samples))
    found = summarise(confusion, names, name, version, canonical_name(dataset), split, images)
    print_evaluation(found, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n")


def dataset_classes(dataset: str) -> tuple[str, ...]:
    """Class names of a dataset, by id.

    Raises:
        ValueError: no names are known for it.
    """
    name = canonical_name(dataset)
    # The synthetic scenes are drawn in CamVid's classes.
    return load_labels("camvid" if name == "synthetic" else name).names


def check_classes(expected: tuple[str, ...], served: tuple[str, ...]) -> tuple[str, ...]:
    """Lines naming the ids that the dataset and the server call differently.

    Raises:
        ValueError: another number of classes, which no score could compare.
    """
    if len(expected) != len(served):
        raise ValueError(
            f"the server's model has {len(served)} classes ({', '.join(served)}), "
            f"the dataset {len(expected)} ({', '.join(expected)}); "
            f"was it trained on another dataset?"
        )
    return tuple(
        f"class {index} is {ours!r} in the dataset and {theirs!r} on the server"
        for index, (ours, theirs) in enumerate(zip(expected, served, strict=True))
        if ours.lower() != theirs.lower()
    )


def score_with_progress(
    samples: SegmentationDataset,
    predict: Predict,
    num_classes: int,
    limit: int | None,
    console: Console,
) -> ConfusionMatrix:
    """As :func:`training.scoring.score`, with a progress bar."""
    with Progress(console=console, transient=True) as progress:
        total = len(samples) if limit is None else min(limit, len(samples))
        task = progress.add_task("scoring", total=total)
        return score(samples, predict, num_classes, limit, on_image=lambda: progress.advance(task))


def the_one_served(served: ServedModel) -> tuple[str, str]:
    """Name and version behind all answers.

    Raises:
        ServerError: several: the model was exchanged during the run.
    """
    if len(served.served) > 1:
        models = ", ".join(f"{name} v{version}" for name, version in sorted(served.served))
        raise ServerError(f"several models answered ({models}); run again while none is exchanged")
    return next(iter(served.served), ("unknown", "unknown"))


def summarise(
    confusion: ConfusionMatrix,
    names: tuple[str, ...],
    model: str,
    version: str,
    dataset: str,
    split: str,
    images: int,
) -> Evaluation:
    """The scores of ``confusion``, named."""
    scores = confusion.intersection_over_union.tolist()
    return Evaluation(
        model=model,
        version=version,
        dataset=dataset,
        split=split,
        images=images,
        pixel_accuracy=_finite(confusion.pixel_accuracy),
        mean_iou=_finite(confusion.mean_iou),
        classes=tuple(
            ClassScore(index, name, _finite(value))
            for index, (name, value) in enumerate(zip(names, scores, strict=True))
        ),
        absent=tuple(names[index] for index in confusion.absent),
    )


def print_evaluation(found: Evaluation, console: Console) -> None:
    """A table of the classes, then the totals."""
    table = Table("class", title=f"{found.model} v{found.version}, {found.dataset} {found.split}")
    table.add_column("IoU", justify="right")
    for entry in found.classes:
        table.add_row(entry.name, _percent(entry.iou))
    console.print(table)
    if found.absent:
        console.print(f"left out of the mean (in no label, no answer): {', '.join(found.absent)}")
    console.print(
        f"images {found.images}  pixAcc {_percent(found.pixel_accuracy)}  "
        f"mIoU {_percent(found.mean_iou)}"
    )


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
