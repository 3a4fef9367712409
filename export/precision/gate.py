"""Judges a lower precision by the labels it serves, and refuses one that costs too much."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from export.errors import AccuracyLost, InvalidImages
from export.precision.confusion_matrix import ConfusionMatrix
from export.precision.images import ImageSource
from export.precision.served_graph import serve_graph
from serving.palette import LabelMap


@dataclass(frozen=True)
class Scores:
    """The accuracy of a graph, 0-1; None where the images have no labels."""

    images: int
    mean_iou: float | None
    pixel_accuracy: float | None


@dataclass(frozen=True)
class Comparison:
    """A graph at a lower precision against the one it was made from.

    Attributes:
        agreement: share of pixels that get the same label from both, 0-1.
        before: the scores of the float32 graph.
        after: the scores of the other one.
    """

    agreement: float
    before: Scores
    after: Scores

    @property
    def drop(self) -> float | None:
        """Returns the lost mIoU in points (negative: gained); None without labels."""
        if self.before.mean_iou is None or self.after.mean_iou is None:
            return None
        return 100 * (self.before.mean_iou - self.after.mean_iou)

    @property
    def loss(self) -> float:
        """Returns what is compared between tries: lost mIoU, else changed labels, in points."""
        return 100 * (1 - self.agreement) if self.drop is None else self.drop


@dataclass(frozen=True)
class Limits:
    """The limits of what a precision may cost.

    Attributes:
        max_miou_drop: points of mIoU, where the images have labels.
        min_agreement: per cent of equal labels, where they have none.
    """

    max_miou_drop: float = 0.5
    min_agreement: float = 98.0

    def excess(self, found: Comparison) -> str | None:
        """Returns why the comparison fails and which option moves the limit; None where it
        passes."""
        if found.drop is not None:
            if found.drop <= self.max_miou_drop:
                return None
            return (
                f"{found.drop:.2f} points of mIoU are lost ({_percent(found.before.mean_iou)} to"
                f" {_percent(found.after.mean_iou)}), more than --max-miou-drop"
                f" {self.max_miou_drop:g}"
            )
        if 100 * found.agreement >= self.min_agreement:
            return None
        return (
            f"only {_percent(found.agreement)} of the labels equal those of fp32, less than"
            f" --min-agreement {self.min_agreement:g}"
        )


class Gate:
    """Compares graphs with one float32 graph on the images of a source.

    The reference is scored once, when the gate is made; its label maps are kept, compressed.
    """

    def __init__(
        self,
        reference: ModelProto,
        source: ImageSource,
        classes: int,
        on_image: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._classes = classes
        self._expected: list[bytes] = []
        self.before, _ = self._score(reference, on_image)

    def __len__(self) -> int:
        """Returns the number of images behind each comparison."""
        return len(self._source)

    def compare(self, model: ModelProto, on_image: Callable[[], None] = lambda: None) -> Comparison:
        """Scores another graph on the same images.

        Raises PrecisionFailed where it does not run, InvalidImages for damaged images.
        """
        after, agreement = self._score(model, on_image)
        return Comparison(agreement, self.before, after)

    def _score(self, model: ModelProto, on_image: Callable[[], None]) -> tuple[Scores, float]:
        confusion = ConfusionMatrix(self._classes)
        first = not self._expected
        equal = total = 0
        with serve_graph(model) as served:
            for index in range(len(self._source)):
                image, truth = self._source[index]
                labels = served.labels(image)
                if first:
                    self._expected.append(zlib.compress(labels.tobytes(), 1))
                equal += self._equal(index, labels)
                total += labels.size
                if truth is not None:
                    try:
                        confusion.update(truth, labels)
                    except ValueError as error:
                        raise InvalidImages(
                            f"{self._source.title}: {error}; is it the dataset that the network"
                            " was trained on?"
                        ) from error
                on_image()
        mean = _finite(confusion.mean_iou)
        return Scores(len(self._source), mean, _finite(confusion.pixel_accuracy)), equal / total

    def _equal(self, index: int, labels: LabelMap) -> int:
        expected = np.frombuffer(zlib.decompress(self._expected[index]), labels.dtype)
        return int((expected == labels.reshape(-1)).sum())


def pass_gate(found: Comparison, limits: Limits, *, force: bool) -> str | None:
    """Raises AccuracyLost where a comparison exceeds the limits; with ``force`` returns why."""
    excess = limits.excess(found)
    if excess is not None and not force:
        raise AccuracyLost(
            f"{excess}; nothing was written. Try --search or more --calibration images, or accept"
            " it with --force"
        )
    return excess


def describe(found: Comparison, title: str) -> str:
    """Returns the accuracy of the lower precision with its protocol, for the repository."""
    parts = [f"{_percent(found.agreement)} of the labels equal those of fp32"]
    if found.drop is not None:
        parts.insert(0, f"{_accuracy(found.after)} (fp32: {_accuracy(found.before)})")
    return f"{', '.join(parts)}; {_protocol(found.after, title)}"


def describe_scores(scores: Scores, title: str) -> str:
    """Returns the accuracy of one graph with its protocol."""
    return f"{_accuracy(scores)}; {_protocol(scores, title)}"


def _accuracy(scores: Scores) -> str:
    return f"mIoU {_percent(scores.mean_iou)}, pixel accuracy {_percent(scores.pixel_accuracy)}"


def _protocol(scores: Scores, title: str) -> str:
    return (
        f"{scores.images} images of {title}, stretched to the model's size, labels at the images'"
        " own size, ONNX Runtime on the CPU"
    )


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f} %"
