"""Scores a network while it trains; its label maps are made as the server makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.precision.confusion_matrix import ConfusionMatrix
from export.symbols.networks import Pixels
from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import labels_from_logits
from serving.palette import LabelSet
from training.datasets import SegmentationDataset, open_dataset
from training.datasets.files import check_label_range
from training.options import TrainOptions
from training.runs.interruption import Interrupted
from training.trainers import Learner
from training.transforms import normalize

# Called before each image with the number done and of all; what it raises ends the validation.
Watch = Callable[[int, int], None]

# Images per device: the others wait no longer than these take for a process that fails.
ROUNDS_BETWEEN_MEETINGS = 8


class FailedElsewhere(ValueError):
    """Another process could not score one of its images."""

    def __init__(self, failure: str) -> None:
        super().__init__(f"another process failed: {failure}")


@dataclass(frozen=True)
class Validation:
    """The scores of the validation split, and of synthetic scenes if they are mixed into the
    training.

    ``synthetic`` is a second score, so that neither is learnt at the other's cost.
    """

    main: ConfusionMatrix
    synthetic: ConfusionMatrix | None

    def describe(self, labels: LabelSet) -> str:
        """Returns two lines for the terminal."""
        main = self.main
        absent = f" ({len(main.absent)} classes absent, left out)" if main.absent else ""
        second = (
            f" synthetic mIoU {self.synthetic.mean_iou:.4f}" if self.synthetic is not None else ""
        )
        scores = zip(labels.names, main.intersection_over_union.tolist(), strict=True)
        per_class = " ".join(f"{name} {score * 100:.0f}" for name, score in scores)
        return (
            f"validation: pixAcc {main.pixel_accuracy:.4f} mIoU {main.mean_iou:.4f}{absent}{second}"
            f"\n  {per_class}"
        )


def validate(
    options: TrainOptions, learner: Learner, num_classes: int, watch: Watch | None = None
) -> Validation:
    """Scores every image of the split, at its own size.

    Several processes score a share each; all have to call this, and all get the whole.

    Raises:
        FailedElsewhere: another process could not score one of its images, which the message names.
        Interrupted: another process received a signal.
    """
    size, pixels = Size(options.height, options.crop_width), options.pixels
    main = open_dataset(options.dataset, "val", options.root)
    scenes = open_dataset("synthetic", "val") if options.synthetic_share else None
    learner.align()
    return Validation(
        _score(main, learner, num_classes, size, pixels, watch),
        None if scenes is None else _score(scenes, learner, num_classes, size, pixels, watch),
    )


def _score(
    dataset: SegmentationDataset, learner: Learner, num_classes: int, model: Size,
    pixels: Pixels, watch: Watch | None,
) -> ConfusionMatrix:  # fmt: skip
    """Scores image ``i`` in process ``i % world``; those with one image less meet the others as
    often.
    """
    own = ConfusionMatrix(num_classes)

    def score(indices: Sequence[int]) -> None:
        views: list[npt.NDArray[np.float32]] = []
        truths: list[tuple[npt.NDArray[np.uint8], Size]] = []
        for index in indices:
            if watch is not None:
                watch(index, len(dataset))
            image, label = dataset[index]
            check_label_range(label, num_classes, dataset.name(index))
            original = Size(*image.shape[:2])
            views.append(normalize(prepare(image, plan(original, model)), pixels))
            truths.append((label, original))
        for logits, (label, original) in zip(learner.logits_together(views), truths, strict=True):
            own.update(label, labels_from_logits(logits, model, original))

    shard, devices = learner.shard, learner.devices
    together = shard.world * devices * ROUNDS_BETWEEN_MEETINGS
    for first in range(0, len(dataset), together):
        share = range(first, min(first + together, len(dataset)))[shard.rank :: shard.world]
        problem: Exception | None = None
        try:
            for start in range(0, len(share), devices):
                score(share[start : start + devices])
        except Exception as error:
            problem = error
        _meet(learner, problem)
    whole = ConfusionMatrix(num_classes)
    whole.matrix = np.sum(learner.gather(own.matrix), axis=0)
    return whole


def _meet(learner: Learner, problem: Exception | None) -> None:
    """Raises in all processes if one cannot continue: the others would wait for it."""
    signal_number = problem.signal_number if isinstance(problem, Interrupted) else 0
    failure = "" if problem is None or signal_number else f"{type(problem).__name__}: {problem}"
    everyone = learner.gather((signal_number, failure))
    failures = [text for _, text in everyone if text]
    if failures:
        raise problem if failure and problem else FailedElsewhere(failures[0])
    signals = [number for number, _ in everyone if number]
    if signals:
        raise problem or Interrupted(signals[0])
