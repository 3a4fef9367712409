"""Scores anything that turns an image into a label map against a dataset."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from export.precision.confusion_matrix import ConfusionMatrix
from training.datasets import SegmentationDataset
from training.datasets.files import ImageFiles
from training.evaluation.boundaries import DEFAULT_TOLERANCE, BoundaryScore, boundary_f

Labels: TypeAlias = npt.NDArray[np.uint8]
# Index and image, uint8 [H,W,3] RGB, to class ids, uint8 [H,W].
Predict: TypeAlias = Callable[[int, npt.NDArray[np.uint8]], Labels]


class ScoringError(Exception):
    """An image could not be scored; the text names it."""


@dataclass(frozen=True)
class ImageScore:
    """The mIoU (over the classes in truth or prediction) and the accuracy of one image, 0-1.

    NaN where every pixel is ignored.
    """

    index: int
    name: str
    mean_iou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Scores:
    """The scores of all images together, and of each one; ``boundary`` may be left out."""

    confusion: ConfusionMatrix
    boundary: BoundaryScore | None
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class _Counted:
    """The counts that one image adds."""

    confusion: ConfusionMatrix
    boundary: npt.NDArray[np.float64] | None


def score(
    dataset: SegmentationDataset,
    predict: Predict,
    num_classes: int,
    indices: Sequence[int] | None = None,
    in_flight: int = 4,
    tolerance: float = DEFAULT_TOLERANCE,
    on_image: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores the images ``indices`` (None: all).

    Args:
        predict: the label map of an image, of its own size; called from ``in_flight`` threads.
        tolerance: of :func:`training.evaluation.boundaries.boundary_f`; 0 leaves that score out,
            which takes longer than a small network at a megapixel and more.
        on_image: called after each image.

    Raises:
        ScoringError: on the first image that fails; none is left out.
    """
    confusion = ConfusionMatrix(num_classes)
    boundary = BoundaryScore(num_classes) if tolerance else None
    images: list[ImageScore] = []
    pending: deque[tuple[int, Future[_Counted]]] = deque()

    def take() -> None:
        index, future = pending.popleft()
        name = dataset.name(index)
        try:
            counted = future.result()
        except Exception as error:
            raise ScoringError(f"{name}: {error}") from error
        confusion.add(counted.confusion)
        if boundary is not None and counted.boundary is not None:
            boundary.add(counted.boundary)
        own = counted.confusion
        images.append(ImageScore(index, name, own.mean_iou, own.pixel_accuracy))
        on_image()

    with ThreadPoolExecutor(in_flight) as pool:
        try:
            for index in range(len(dataset)) if indices is None else indices:
                work = pool.submit(_count, dataset, index, predict, num_classes, tolerance)
                pending.append((index, work))
                if len(pending) == 2 * in_flight:
                    take()
            while pending:
                take()
        finally:
            pool.shutdown(cancel_futures=True)
    return Scores(confusion, boundary, tuple(images))


def join_scores(parts: Sequence[Scores]) -> Scores:
    """Joins the scores of all parts of a dataset; ``parts`` is not empty."""
    num_classes = parts[0].confusion.num_classes
    confusion = ConfusionMatrix(num_classes)
    boundary = BoundaryScore(num_classes) if parts[0].boundary else None
    for part in parts:
        confusion.add(part.confusion)
        if boundary is not None and part.boundary is not None:
            boundary.join(part.boundary)
    images = sorted((image for part in parts for image in part.images), key=lambda i: i.index)
    return Scores(confusion, boundary, tuple(images))


def first_indices(dataset: SegmentationDataset, limit: int | None) -> range:
    """Returns the indices of the first ``limit`` images; None: of all."""
    return range(len(dataset) if limit is None else min(limit, len(dataset)))


def encode_sample(dataset: SegmentationDataset, index: int, image: npt.NDArray[np.uint8]) -> bytes:
    """Returns the image's own file if the dataset has files, else ``image`` as a PNG."""
    if isinstance(dataset, ImageFiles):
        return dataset.pairs[index][0].read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _count(
    dataset: SegmentationDataset,
    index: int,
    predict: Predict,
    num_classes: int,
    tolerance: float,
) -> _Counted:
    image, truth = dataset[index]
    prediction = predict(index, image)
    confusion = ConfusionMatrix(num_classes)
    confusion.update(truth, prediction)
    boundary = boundary_f(truth, prediction, num_classes, tolerance) if tolerance else None
    return _Counted(confusion, boundary)
