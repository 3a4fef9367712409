"""Reads every pair of a dataset, and counts what training would trip over."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.datasets import IGNORE_LABEL, SegmentationDataset
from training.datasets.files import ImageFiles, check_label_range

THREADS = 4


@dataclass(frozen=True)
class SplitReport:
    """A report of what one split contains.

    Attributes:
        images: pairs that were read, the damaged ones included.
        sizes: (height, width) and how many images have it, the most frequent first.
        pixels: int64 ``[C]``, of each class, over the pairs without a problem.
        images_with: int64 ``[C]``, how many of them hold the class.
        ignored: pixels with label 255.
        problems: one line a damaged pair, naming its file.
        empty_masks: names of the pairs whose every pixel is ignored.
    """

    split: str
    images: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    pixels: npt.NDArray[np.int64]
    images_with: npt.NDArray[np.int64]
    ignored: int
    problems: tuple[str, ...]
    empty_masks: tuple[str, ...]

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Returns the share of each class in the pixels that count, float64 ``[C]``; 0 if none
        do."""
        return self.pixels / max(1, int(self.pixels.sum()))


@dataclass(frozen=True)
class _Pair:
    """A pair: its size and the counts of its 256 labels, or what is wrong with it."""

    name: str
    size: tuple[int, int] | None = None
    counts: npt.NDArray[np.int64] | None = None
    problem: str = ""


def check_split(
    dataset: SegmentationDataset,
    split: str,
    num_classes: int,
    limit: int | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> SplitReport:
    """Reads the first ``limit`` pairs (None: all); a damaged one does not stop it."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    sizes: Counter[tuple[int, int]] = Counter()
    total = np.zeros(256, np.int64)
    images_with = np.zeros(256, np.int64)
    problems, empty = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        pairs = pool.map(lambda index: _read_pair(dataset, index, num_classes), range(count))
        for pair in pairs:
            if pair.counts is None or pair.size is None:
                problems.append(pair.problem)
            else:
                sizes[pair.size] += 1
                total += pair.counts
                images_with += pair.counts > 0
                if pair.counts[IGNORE_LABEL] == pair.counts.sum():
                    empty.append(pair.name)
            on_image()
    return SplitReport(
        split=split,
        images=count,
        sizes=tuple(sizes.most_common()),
        pixels=total[:num_classes],
        images_with=images_with[:num_classes],
        ignored=int(total[IGNORE_LABEL]),
        problems=tuple(problems),
        empty_masks=tuple(empty),
    )


def repeated_photos(parts: Sequence[SegmentationDataset]) -> tuple[tuple[Path, ...], ...]:
    """Returns the photos that several splits of a dataset contain, byte for byte the same.

    Only files of one length are read; datasets without files have none.
    """
    by_length: dict[int, list[tuple[int, Path]]] = {}
    for number, part in enumerate(parts):
        for photo, _ in part.pairs if isinstance(part, ImageFiles) else ():
            by_length.setdefault(photo.stat().st_size, []).append((number, photo))
    by_content: dict[bytes, list[tuple[int, Path]]] = {}
    for places in by_length.values():
        if len({number for number, _ in places}) > 1:
            for number, photo in places:
                digest = hashlib.sha256(photo.read_bytes()).digest()
                by_content.setdefault(digest, []).append((number, photo))
    return tuple(
        tuple(photo for _, photo in places)
        for places in by_content.values()
        if len({number for number, _ in places}) > 1
    )


def _read_pair(dataset: SegmentationDataset, index: int, num_classes: int) -> _Pair:
    name = dataset.name(index)
    try:
        image, label = dataset[index]
        check_label_range(label, num_classes, name)
    except (ValueError, OSError) as error:
        return _Pair(name, problem=str(error))
    height, width = image.shape[:2]
    counts = np.bincount(label.reshape(-1), minlength=256).astype(np.int64)
    return _Pair(name, (height, width), counts)
