"""What an evaluation writes: tables, the confusion matrix and the examples as pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from serving.palette import LabelSet
from training.datasets import SegmentationDataset
from training.evaluation.example_grid import Choice, Example, draw_grid
from training.evaluation.report import Evaluation, write_tables
from training.evaluation.scoring import Predict


def check_matplotlib() -> None:
    """Raises ValueError, naming the extra, before minutes are spent on scores."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "--output draws the confusion matrix with matplotlib, which is missing; install it "
            "with: pip install 'segserve[training]' (or matplotlib alone), or leave --output out"
        )


def read_examples(
    samples: SegmentationDataset, predict: Predict, choices: Sequence[Choice]
) -> tuple[Example, ...]:
    """The chosen images, asked for again: keeping every answer could take gigabytes."""
    found = []
    for choice in choices:
        index = choice.score.index
        image, truth = samples[index]
        found.append(Example(choice, image, truth, predict(index, image)))
    return tuple(found)


def write_output(
    found: Evaluation, shown: tuple[Example, ...], labels: LabelSet, folder: Path
) -> None:
    """The tables, ``confusion.png``, and ``examples.png`` where any image could be scored."""
    from training.evaluation.confusion_picture import draw_confusion

    write_tables(found, folder)
    draw_confusion(found, folder / "confusion.png")
    if shown:
        draw_grid(shown, labels, folder / "examples.png")
