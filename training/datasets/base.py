"""What a dataset is here: indexable pairs, and a name for every pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from export.datasets import IGNORE_LABEL, Sample, SegmentationDataset

__all__ = ["IGNORE_LABEL", "ImageFiles", "Sample", "SegmentationDataset", "check_label_range"]


@runtime_checkable
class ImageFiles(Protocol):
    """A dataset whose images are files: ``pairs[i]`` is (image, label)."""

    @property
    def pairs(self) -> Sequence[tuple[Path, Path]]: ...


def check_label_range(label: npt.NDArray[np.uint8], num_classes: int, name: str) -> None:
    """Raises ValueError, naming the file, where a label is neither a class nor 255.

    A class beyond the network's outputs is not harmless: it never gets a probability, and its
    loss grows until it is infinite.
    """
    counts = np.bincount(label.reshape(-1), minlength=256)
    bad = [value for value in np.flatnonzero(counts).tolist() if num_classes <= value < 255]
    if bad:
        raise ValueError(
            f"{name}: labels {bad} are outside 0..{num_classes - 1} (ignored: {IGNORE_LABEL}); "
            f"the dataset has more classes than the network has outputs, or the mask is in colour"
        )
