"""Scores whatever turns an encoded image into a label map against a dataset."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.datasets import SegmentationDataset
from training.metrics import ConfusionMatrix

Labels: TypeAlias = npt.NDArray[np.uint8]
Predict: TypeAlias = Callable[[bytes], Labels]


class ScoringError(Exception):
    """An image that could not be scored; the text names it."""


@runtime_checkable
class ImageFiles(Protocol):
    """A dataset whose images are files: ``pairs[i]`` is (image, label)."""

    @property
    def pairs(self) -> Sequence[tuple[Path, Path]]: ...


def score(
    dataset: SegmentationDataset,
    predict: Predict,
    num_classes: int,
    limit: int | None = None,
    in_flight: int = 4,
    on_image: Callable[[], None] = lambda: None,
) -> ConfusionMatrix:
    """The confusion matrix over the first ``limit`` images (None: all).

    Args:
        predict: an encoded image to class ids, uint8 ``[H,W]`` of the image's own size; called
            from ``in_flight`` threads.
        on_image: called after each image.

    Raises:
        ScoringError: on the first image that fails; none is left out.
    """
    confusion = ConfusionMatrix(num_classes)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    pending: deque[tuple[int, Future[tuple[Labels, Labels]]]] = deque()
    with ThreadPoolExecutor(in_flight) as pool:
        try:
            for index in range(count):
                pending.append((index, pool.submit(_predict_one, dataset, index, predict)))
                if len(pending) == 2 * in_flight:
                    _update(confusion, dataset, *pending.popleft())
                    on_image()
            while pending:
                _update(confusion, dataset, *pending.popleft())
                on_image()
        finally:
            pool.shutdown(cancel_futures=True)
    return confusion


def encode_sample(dataset: SegmentationDataset, index: int, image: npt.NDArray[np.uint8]) -> bytes:
    """The image's own file where the dataset has files, else ``image`` as a PNG."""
    if isinstance(dataset, ImageFiles):
        return dataset.pairs[index][0].read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _predict_one(
    dataset: SegmentationDataset, index: int, predict: Predict
) -> tuple[Labels, Labels]:
    image, truth = dataset[index]
    return truth, predict(encode_sample(dataset, index, image))


def _update(
    confusion: ConfusionMatrix,
    dataset: SegmentationDataset,
    index: int,
    future: Future[tuple[Labels, Labels]],
) -> None:
    try:
        truth, prediction = future.result()
        confusion.update(truth, prediction)
    except Exception as error:
        raise ScoringError(f"{dataset.name(index)}: {error}") from error
