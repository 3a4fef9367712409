"""Class weights: how much a pixel of each class weighs in the loss."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.datasets import SegmentationDataset
from serving.parsing import read_text


def balance_classes(pixels: npt.NDArray[np.int64], power: float) -> npt.NDArray[np.float32]:
    """Returns weights ``(median frequency / frequency) ** power`` of present classes, 1 of absent
    ones.

    ``power`` 0 weighs all alike; 1 is median-frequency balancing (Eigen and Fergus, 2015).
    """
    frequency = pixels / max(1, pixels.sum())
    present = frequency > 0
    weights = np.ones(len(pixels), np.float64)
    if present.any():
        weights[present] = (np.median(frequency[present]) / frequency[present]) ** power
    return weights.astype(np.float32)


def weigh_classes(
    dataset: SegmentationDataset, num_classes: int, power: float, given: Sequence[float] = ()
) -> npt.NDArray[np.float32]:
    """Returns the ``given`` weights (``--class-weights``), or else ``balance_classes`` of the
    dataset's labels, all of which are read unless ``power`` is 0.
    """
    if given:
        return np.array(given, np.float32)
    pixels = np.zeros(256, np.int64)
    if power:
        for index in range(len(dataset)):
            pixels += np.bincount(dataset[index][1].reshape(-1), minlength=256)
    return balance_classes(pixels[:num_classes], power)


def check_class_weights(weights: Sequence[float], names: Sequence[str]) -> None:
    """Raises ValueError unless there are no weights, or one for each of the classes ``names``."""
    if weights and len(weights) != len(names):
        raise ValueError(
            f"--class-weights has {len(weights)} numbers, the dataset {len(names)} classes: give "
            f"one each, in the order {', '.join(names)}"
        )


def parse_class_weights(text: str) -> tuple[float, ...]:
    """Returns the numbers of ``0.5,2,1``, or of a file of them (commas or lines between them).

    Some may be 0: pixels of those classes are not learnt from.
    """
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = _read_numbers(Path(text))
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise argparse.ArgumentTypeError(f"{text!r}: weights are 0 or more, and not all of them 0")
    return weights


def _read_numbers(path: Path) -> tuple[float, ...]:
    try:
        content = read_text(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{str(path)!r} is neither a comma-separated list of numbers nor a file of them "
            f"({error})"
        ) from None
    try:
        return tuple(float(part) for part in content.replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
