"""``segserve dataset``: downloads a dataset, or checks that it is fit to train on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from serving.palette import LabelSet
from training.datasets import (
    KNOWN,
    SegmentationDataset,
    canonical_name,
    dataset_labels,
    default_root,
    open_dataset,
)
from training.datasets.check import SplitReport, check_split, repeated_photos
from training.datasets.preparation import prepare

SHOWN_SIZES = 3


class Action(str, Enum):
    """The actions of ``segserve dataset``."""

    check = "check"
    prepare = "prepare"


def dataset(
    action: Annotated[Action, typer.Argument(show_default=False)],
    name: Annotated[str, typer.Argument(help=", ".join(KNOWN), show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="folder of the dataset; default: ~/.mxnet/datasets/<name>")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="split to check; may be repeated; default: train and val"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="check only this many images of each split")
    ] = None,
) -> None:
    """Check a dataset, or download it.

    check: read every image and mask (pairs, sizes, label range, share of each class); exits with 1
    if training would fail, and names the files.

    prepare: download the published archives into ROOT, check their hashes and unpack them, or say
    which files to put where.
    """
    console = Console()
    if action is Action.prepare:
        prepare_with_progress(name, root or default_root(name), console)
        return
    try:
        labels = dataset_labels(name, root)
    except (ValueError, OSError) as error:
        sys.exit(f"segserve dataset check: {error}")
    reports, problems, opened = [], [], []
    for part in split or ("train", "val"):
        try:
            opened.append(open_dataset(name, part, root))
            reports.append(check_with_progress(opened[-1], part, len(labels.names), limit))
        except (ValueError, OSError) as error:
            problems.append(f"{part}: {error}")
    problems += [line for report in reports for line in report.problems]
    if reports:
        print_reports(canonical_name(name), labels, reports, console)
    for warning in (*find_warnings(labels, reports), *find_repeated(opened)):
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    for problem in problems:
        console.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    if problems:
        sys.exit(1)
    console.print(f"{sum(report.images for report in reports)} pairs, no problems")


def prepare_with_progress(name: str, root: Path, console: Console) -> None:
    """Runs :func:`training.datasets.preparation.prepare` with a progress bar for each download."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def watch(file: str) -> Callable[[int, int], None]:
            task = progress.add_task(file, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total or None)

        try:
            done = prepare(name, root, on_archive=watch)
        except (ValueError, OSError) as error:
            sys.exit(f"segserve dataset prepare: {error}")
    outcome = "is ready" if done else "was ready already"
    console.print(
        f"{root} {outcome}; try: segserve dataset check {name} --root {root}", markup=False
    )


def check_with_progress(
    samples: SegmentationDataset, split: str, num_classes: int, limit: int | None
) -> SplitReport:
    """Runs :func:`training.datasets.check.check_split` with a progress bar."""
    count = len(samples) if limit is None else min(limit, len(samples))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"reading {split}", total=count)
        return check_split(
            samples, split, num_classes, limit, on_image=lambda: progress.advance(task)
        )


def print_reports(
    name: str, labels: LabelSet, reports: list[SplitReport], console: Console
) -> None:
    """Prints the sizes of each split, then a table: share of pixels and number of images of each
    class.
    """
    for report in reports:
        sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in report.sizes[:SHOWN_SIZES])
        more = len(report.sizes) - SHOWN_SIZES
        console.print(
            f"{report.split}: {report.images} pairs; height x width: {sizes or 'none'}"
            + (f" and {more} more sizes" if more > 0 else ""),
            highlight=False,
        )
    table = Table("id", "class", "colour", title=f"{name}: share of labelled pixels (images)")
    for report in reports:
        table.add_column(report.split, justify="right")
    for index, (label, (red, green, blue)) in enumerate(
        zip(labels.names, labels.colors, strict=True)
    ):
        code = f"#{red:02x}{green:02x}{blue:02x}"
        cells = [
            f"{100 * report.shares[index]:.2f} % ({report.images_with[index]})"
            for report in reports
        ]
        table.add_row(str(index), escape(label), f"[on {code}]    [/] {code}", *cells)
    ignored = [
        f"{100 * report.ignored / max(1, report.ignored + int(report.pixels.sum())):.2f} % of all"
        for report in reports
    ]
    table.add_row(str(labels.ignore_label), "(ignored)", "", *ignored, style="dim")
    console.print(table)


def find_warnings(labels: LabelSet, reports: list[SplitReport]) -> list[str]:
    """Returns a line for each finding that does not stop a training, but may be a mistake."""
    lines = []
    for report in reports:
        absent = [labels.names[i] for i, count in enumerate(report.pixels.tolist()) if not count]
        if absent:
            lines.append(f"{report.split}: no pixel of {', '.join(absent)}")
        lines += [f"{name}: every pixel is ignored" for name in report.empty_masks]
    return lines


def find_repeated(parts: list[SegmentationDataset]) -> list[str]:
    """Returns a line for each photo that is both trained on and scored on."""
    return [
        f"the same photo in several splits: {', '.join(map(str, photos))}"
        for photos in repeated_photos(parts)
    ]
