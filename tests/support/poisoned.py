"""A NaN in one image of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from training.loader import Batch, Loader


def poison(batch: Batch, ending: str) -> Batch:
    """A copy whose images called ``...ending`` have one NaN each; the batch where none is."""
    bad = [index for index, name in enumerate(batch.names) if name.endswith(ending)]
    if not bad:
        return batch
    images = batch.images.copy()
    images[bad, 1, 5, 7] = np.nan
    return replace(batch, images=images)


class PoisonedLoader(Loader):
    """Image ``003.png`` holds a NaN."""

    ending = "003.png"

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(number, first):
            yield poison(batch, self.ending)


class BrokenLoader(PoisonedLoader):
    """Every image holds a NaN."""

    ending = ".png"
