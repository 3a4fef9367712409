"""Scores of a network while it trains; its label maps are made as the server makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from export.pixels import Pixels
from serving.geometry import Size, plan, prepare
from serving.palette import LabelSet
from serving.restore import labels_from_logits
from training.datasets import SegmentationDataset, open_dataset
from training.datasets.base import check_label_range
from training.evaluation.metrics import ConfusionMatrix
from training.learner import Learner
from training.options import TrainOptions
from training.transforms import normalize

# Is told, before each image, how many of how many are done; what it raises ends the validation.
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Validation:
    """Of the validation split; of synthetic scenes too, where they are mixed into the training.

    ``synthetic`` is a second score, so that neither is learnt at the other's cost.
    """

    main: ConfusionMatrix
    synthetic: ConfusionMatrix | None

    def describe(self, labels: LabelSet) -> str:
        """Two lines for the terminal."""
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
    """Every image of the split, at its own size."""
    size, pixels = Size(options.height, options.crop_width), options.pixels
    main = open_dataset(options.dataset, "val", options.root)
    scenes = open_dataset("synthetic", "val") if options.synthetic_share else None
    return Validation(
        _score(main, learner, num_classes, size, pixels, watch),
        None if scenes is None else _score(scenes, learner, num_classes, size, pixels, watch),
    )


def _score(
    dataset: SegmentationDataset, learner: Learner, num_classes: int, model: Size,
    pixels: Pixels, watch: Watch | None,
) -> ConfusionMatrix:  # fmt: skip
    confusion = ConfusionMatrix(num_classes)
    for index in range(len(dataset)):
        if watch is not None:
            watch(index, len(dataset))
        image, label = dataset[index]
        check_label_range(label, num_classes, dataset.name(index))
        original = Size(*image.shape[:2])
        logits = learner.logits(normalize(prepare(image, plan(original, model)), pixels))
        confusion.update(label, labels_from_logits(logits, model, original))
    return confusion
