"""Scores a file of weights on a dataset, or writes what the network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from training.datasets import SegmentationDataset, dataset_labels
from training.evaluation.evaluator import Evaluator, Evaluators, open_samples
from training.evaluation.options import EvaluationOptions
from training.evaluation.output import check_matplotlib, choose, read_examples, write_output
from training.evaluation.report import (
    Evaluation,
    Subject,
    print_evaluation,
    summarise,
    summarise_time,
)
from training.evaluation.scoring import first_indices, join_scores


def run_evaluation(options: EvaluationOptions, console: Console) -> None:
    """Runs ``test.py``.

    Raises:
        ValueError: a wrong option, image or file of weights; the message names it.
        FileNotFoundError: no dataset or no weights.
        ScoringError: an image that cannot be scored.
    """
    if options.output is not None:
        if options.score:
            check_matplotlib()
        options.output.mkdir(parents=True, exist_ok=True)
    if not options.weights.is_file():
        raise FileNotFoundError(f"no weights at {options.weights}; name them with --resume")
    samples = open_samples(options)
    indices = first_indices(samples, options.limit)
    evaluators = Evaluators(options)
    try:
        shared = f", {evaluators.count} processes" if evaluators.count > 1 else ""
        console.print(f"{len(indices)} images{shared}; {options.protocol()}", highlight=False)
        if options.score:
            found = score_weights(options, samples, indices, evaluators)
            print_evaluation(found, console, options.legacy_miou)
        elif options.output is not None:
            write_predictions(samples, indices, evaluators, options.output)
            console.print(f"{len(indices)} predictions in {options.output}", markup=False)
    finally:
        evaluators.close()


def score_weights(
    options: EvaluationOptions,
    samples: SegmentationDataset,
    indices: Sequence[int],
    evaluators: Evaluators,
) -> Evaluation:
    """Scores the images of ``indices``; writes tables and pictures if ``options.output`` is set."""
    run = options.run
    shares = evaluators.share(indices)
    parts = evaluators.map([partial(Evaluator.score, indices=share) for share in shares])
    scores = join_scores([part.scores for part in parts])
    labels = dataset_labels(run.dataset, run.root)
    subject = Subject(
        run.model, "", str(options.weights), run.dataset, options.split,
        options.boundary_tolerance, options.protocol(),
    )  # fmt: skip
    seconds = [second for part in parts for second in part.seconds]
    found = summarise(scores, labels.names, subject, summarise_time(seconds, evaluators.on_gpu))
    if options.output is not None:
        shown = read_examples(
            samples,
            lambda index, image: evaluators.map(
                [partial(Evaluator.predict, index=index, image=image)]
            )[0],
            choose(scores.images, options.examples),
        )
        write_output(found, shown, labels, options.output)
    return found


def write_predictions(
    samples: SegmentationDataset, indices: Sequence[int], evaluators: Evaluators, folder: Path
) -> None:
    """Writes one indexed PNG for each image, in the dataset's colours."""
    files = prediction_files(samples, indices, folder)
    evaluators.map(
        [
            partial(Evaluator.write, indices=share, files=[files[index] for index in share])
            for share in evaluators.share(indices)
        ]
    )


def prediction_files(
    samples: SegmentationDataset, indices: Sequence[int], folder: Path
) -> list[Path]:
    """Returns a file for each image, of its name; a repeated name gets its number too."""
    files, taken = [], set()
    for index in indices:
        stem = Path(samples.name(index)).stem
        files.append(folder / (f"{stem}.png" if stem not in taken else f"{stem}_{index}.png"))
        taken.add(stem)
    return files
