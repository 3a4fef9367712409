"""Batches for one epoch, augmented by threads ahead of the training loop.

The order and every augmentation are functions of (seed, epoch, position, row): a resumed run sees
what an uninterrupted one would have seen, and several processes see what one would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from export.datasets import Sample, SegmentationDataset
from export.symbols.networks import Pixels
from training.datasets.files import check_label_range
from training.transforms import Augmentation, normalize

PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Batch:
    """A batch: images float32 ``[N,3,H,W]`` as the network sees them, labels uint8 ``[N,H,W]``,
    names.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    names: tuple[str, ...]


class Cached:
    """A dataset that keeps samples which cost more to make than to store (rendered scenes)."""

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
    """A mixture of all of ``primary`` and as much of ``secondary`` as makes up ``share`` of each
    epoch.
    """

    def __init__(
        self, primary: SegmentationDataset, secondary: SegmentationDataset | None, share: float
    ) -> None:
        if not 0.0 <= share < 1.0:
            raise ValueError(
                f"the share of synthetic scenes is {share}: expected 0 or more, and below 1"
            )
        self.primary = primary
        self.secondary = secondary
        self.extra = round(len(primary) * share / (1.0 - share)) if secondary is not None else 0

    def order(self, random: np.random.Generator) -> list[tuple[SegmentationDataset, int]]:
        """Returns (dataset, index) of every sample of an epoch, shuffled."""
        chosen = [(self.primary, index) for index in range(len(self.primary))]
        if self.secondary is not None and self.extra:
            drawn = random.integers(0, len(self.secondary), self.extra)
            chosen += [(self.secondary, int(index)) for index in drawn]
        return [chosen[i] for i in random.permutation(len(chosen))]


@dataclass(frozen=True)
class Shard:
    """A shard says which rows of every batch one process of ``world`` loads.

    Where a batch is passed in ``parts``, each part is shared out by itself: all processes' parts
    together are the parts of one.
    """

    rank: int = 0
    world: int = 1
    parts: int = 1

    @property
    def leads(self) -> bool:
        """Returns whether this is the first process, which alone writes the run."""
        return self.rank == 0

    def rows(self, batch_size: int) -> list[int]:
        """Returns the rows of this process: as many as each of the others has."""
        part = batch_size // self.parts
        share = part // self.world
        starts = range(self.rank * share, batch_size, part)
        return [row for start in starts for row in range(start, start + share)]


WHOLE = Shard()


def join_shards(batches: Sequence[Batch], shard: Shard) -> Batch:
    """Joins each process's rows, by rank, into the whole batch; ``shard`` is any of theirs."""
    if len(batches) == 1:
        return batches[0]
    size = sum(len(batch.names) for batch in batches)
    rows = [row for rank in range(len(batches)) for row in replace(shard, rank=rank).rows(size)]
    order = np.argsort(rows)
    names = [name for batch in batches for name in batch.names]
    return Batch(
        np.concatenate([batch.images for batch in batches])[order],
        np.concatenate([batch.labels for batch in batches])[order],
        tuple(names[index] for index in order),
    )


class Loader:
    """A loader of full batches: a smaller last one would change the batch-norm statistics.

    With a ``shard``, a batch is that process's rows of it. ``prefetch`` batches are made ahead of
    the current one, each by one worker: more workers than that plus one have no work.
    """

    def __init__(
        self,
        mixture: Mixture,
        augmentation: Augmentation,
        *,
        num_classes: int,
        batch_size: int,
        workers: int,
        seed: int,
        pixels: Pixels,
        shard: Shard = WHOLE,
        prefetch: int = PREFETCHED_BATCHES,
    ) -> None:
        self.mixture = mixture
        self.augmentation = augmentation
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.workers = max(1, workers)
        self.prefetch = prefetch
        self.pixels = pixels
        self.seed = seed
        if batch_size % shard.world:
            raise ValueError(
                f"batch size {batch_size} cannot be shared equally among {shard.world} processes: "
                "give a multiple"
            )
        self.shard = shard
        self.batches = (len(mixture.primary) + mixture.extra) // batch_size
        if not self.batches:
            raise ValueError(
                f"batch size {batch_size} is larger than the training set "
                f"({len(mixture.primary) + mixture.extra} images): give a smaller --batch-size"
            )

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """Yields the epoch's batches from number ``first`` on; both count from 0."""
        order = self.mixture.order(np.random.default_rng((self.seed, number)))
        groups = [
            order[i * self.batch_size : (i + 1) * self.batch_size]
            for i in range(first, self.batches)
        ]
        with ThreadPoolExecutor(self.workers, "loader") as pool:
            pending: deque[Future[Batch]] = deque()
            for index, group in enumerate(groups, first):
                pending.append(pool.submit(self._load, group, number, index))
                if len(pending) > self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _load(
        self, group: list[tuple[SegmentationDataset, int]], epoch: int, position: int
    ) -> Batch:
        images, labels, names = [], [], []
        for row in self.shard.rows(self.batch_size):
            dataset, index = group[row]
            random = np.random.default_rng((self.seed, epoch, position, row))
            sample = dataset[index]
            check_label_range(sample[1], self.num_classes, dataset.name(index))
            image, label = self.augmentation(sample, random)
            images.append(normalize(image, self.pixels))
            labels.append(label)
            names.append(dataset.name(index))
        return Batch(np.stack(images), np.stack(labels), tuple(names))


def step_seed(seed: int, epoch: int, iteration: int, rank: int = 0) -> int:
    """Returns a seed of what is random in one step, a function of its place in the run and the
    process. It has 31 bits, which every framework takes.
    """
    place = np.random.SeedSequence((seed, epoch, iteration, rank))
    return int(place.generate_state(1)[0]) >> 1
