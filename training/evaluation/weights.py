"""Scores a file of weights on a dataset, or writes what the network predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from serving.geometry import Size
from serving.palette import LabelSet
from training.datasets import SegmentationDataset, dataset_labels, open_dataset
from training.evaluation.report import (
    Evaluation,
    Subject,
    print_evaluation,
    summarise,
    to_json,
    write_tables,
)
from training.evaluation.scoring import encode_sample, score
from training.evaluation.trained_model import TrainedModel
from training.evaluation.weights_options import EvaluationOptions, at_size
from training.train import make_learner

# Every network can have a multiple of it.
STEP = 32


def run_evaluation(options: EvaluationOptions, console: Console) -> None:
    """What ``test.py`` does.

    Raises:
        ValueError: a wrong option, image or file of weights; the message names it.
        FileNotFoundError: no dataset or no weights.
        ScoringError: an image that cannot be scored.
    """
    samples = open_dataset(options.run.dataset, options.split, options.run.root)
    labels = dataset_labels(options.run.dataset, options.run.root)
    size = options.size or whole_size(samples)
    console.print(f"{len(samples)} images; network at {size[0]}x{size[1]}", highlight=False)
    learner = make_learner(at_size(options, size), len(labels.names))
    learner.read_parameters(options.weights)
    try:
        model = TrainedModel(learner, Size(*size), options.flip, options.run.pixels)
        _evaluate(options, samples, labels, model, console)
    finally:
        learner.close()


def _evaluate(
    options: EvaluationOptions,
    samples: SegmentationDataset,
    labels: LabelSet,
    model: TrainedModel,
    console: Console,
) -> None:
    if options.score:
        found = score_weights(options, samples, labels, model)
        print_evaluation(found, console)
        console.print(
            f"network an image: median {model.percentile_ms(50):.1f} ms, "
            f"95 % below {model.percentile_ms(95):.1f} ms",
            highlight=False,
        )
    elif options.output is not None:
        count = write_predictions(samples, labels, model, options.output, options.limit)
        console.print(f"{count} predictions in {options.output}", markup=False)


def whole_size(samples: SegmentationDataset) -> tuple[int, int]:
    """Height and width of the first image, each to the nearest multiple of 32."""
    height, width = samples[0][0].shape[:2]
    return max(STEP, round(height / STEP) * STEP), max(STEP, round(width / STEP) * STEP)


def score_weights(
    options: EvaluationOptions,
    samples: SegmentationDataset,
    labels: LabelSet,
    model: TrainedModel,
) -> Evaluation:
    """Scores; with ``options.output`` the tables and ``scores.json`` are written there."""
    tolerance = options.boundary_tolerance
    # A learner answers one at a time.
    scores = score(samples, model, len(labels.names), options.limit, 1, tolerance)
    subject = Subject(
        options.run.model, "-", str(options.weights), options.run.dataset, options.split, tolerance
    )
    found = summarise(scores, labels.names, subject)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_tables(found, options.output)
        (options.output / "scores.json").write_text(to_json(found), "utf-8")
    return found


def write_predictions(
    samples: SegmentationDataset,
    labels: LabelSet,
    model: TrainedModel,
    folder: Path,
    limit: int | None,
) -> int:
    """One indexed PNG an image, in the dataset's colours; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(samples) if limit is None else min(limit, len(samples))
    written: set[str] = set()
    for index in range(count):
        image = samples[index][0]
        stem = Path(samples.name(index)).stem
        file = f"{stem}.png" if stem not in written else f"{stem}_{index}.png"
        written.add(stem)
        save_indexed(model(encode_sample(samples, index, image)), labels, folder / file)
    return count


def save_indexed(ids: npt.NDArray[np.uint8], labels: LabelSet, path: Path) -> None:
    """Class ids as pixel values, the colours in the palette."""
    picture = Image.fromarray(ids)
    picture.putpalette([part for color in labels.colors for part in color])
    picture.save(path)
