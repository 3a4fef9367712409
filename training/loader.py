"""Batches for one epoch, augmented by threads ahead of the training loop.

The order and every augmentation are functions of (seed, epoch, position): a resumed run sees what
an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.datasets.base import Sample, SegmentationDataset, check_label_range
from training.transforms import Augmentation, normalize

PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Batch:
    """images float32 ``[N,3,H,W]`` normalised RGB, labels uint8 ``[N,H,W]``, one name an image."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    names: tuple[str, ...]


class Cached:
    """Keeps samples that cost more to make than to hold (rendered scenes)."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        if index not in self.samples:
            self.samples[index] = self.dataset[index]
        return self.samples[index]

    def name(self, index: int) -> str:
        return self.dataset.name(index)


class Mixture:
    """All of ``primary`` every epoch, and so many of ``secondary`` that they make up ``share``."""

    def __init__(
        self, primary: SegmentationDataset, secondary: SegmentationDataset | None, share: float
    ) -> None:
        if not 0.0 <= share < 1.0:
            raise ValueError(f"the share of mixed-in scenes must be in [0, 1), not {share}")
        self.primary = primary
        self.secondary = secondary
        self.extra = round(len(primary) * share / (1.0 - share)) if secondary is not None else 0

    def order(self, random: np.random.Generator) -> list[tuple[SegmentationDataset, int]]:
        """(dataset, index) of every sample of an epoch, shuffled."""
        chosen = [(self.primary, index) for index in range(len(self.primary))]
        if self.secondary is not None and self.extra:
            drawn = random.integers(0, len(self.secondary), self.extra)
            chosen += [(self.secondary, int(index)) for index in drawn]
        return [chosen[i] for i in random.permutation(len(chosen))]


class Loader:
    """Full batches only: a smaller last one would change the batch-norm statistics."""

    def __init__(
        self,
        mixture: Mixture,
        augmentation: Augmentation,
        *,
        num_classes: int,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        self.mixture = mixture
        self.augmentation = augmentation
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.workers = max(1, workers)
        self.seed = seed
        self.batches = (len(mixture.primary) + mixture.extra) // batch_size
        if not self.batches:
            raise ValueError(
                f"batch size {batch_size} is larger than the training set "
                f"({len(mixture.primary) + mixture.extra} images)"
            )

    def epoch(self, number: int) -> Iterator[Batch]:
        order = self.mixture.order(np.random.default_rng((self.seed, number)))
        groups = [
            order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.batches)
        ]
        with ThreadPoolExecutor(self.workers, "loader") as pool:
            pending: deque[Future[Batch]] = deque()
            for index, group in enumerate(groups):
                pending.append(pool.submit(self._load, group, number, index))
                if len(pending) > PREFETCHED_BATCHES:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _load(
        self, group: list[tuple[SegmentationDataset, int]], epoch: int, position: int
    ) -> Batch:
        random = np.random.default_rng((self.seed, epoch, position))
        images, labels, names = [], [], []
        for dataset, index in group:
            sample = dataset[index]
            check_label_range(sample[1], self.num_classes, dataset.name(index))
            image, label = self.augmentation(sample, random)
            images.append(normalize(image))
            labels.append(label)
            names.append(dataset.name(index))
        return Batch(np.stack(images), np.stack(labels), tuple(names))
