"""One run of an engine: images of several requests put together, and what they need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from serving.batching.request_queue import Item
from serving.engine import Engine, LabelEngine, Prediction

# The batch's prediction, and the seconds that its assembly took.
Run: TypeAlias = tuple[Prediction, float]


def infer(engine: Engine, items: Sequence[Item], clock: Callable[[], float]) -> Run:
    """Runs ``engine`` on the images of ``items``; on the engine's thread."""
    start = clock()
    batch = items[0].image[None]
    if len(items) > 1:
        batch = np.stack([item.image for item in items])
    assembled = clock() - start
    # One image that needs logits brings them for its batch mates too.
    suffice = all(item.labels_suffice for item in items)
    if suffice and isinstance(engine, LabelEngine) and engine.gives_labels:
        return engine.run_labels(batch), assembled
    return engine.run(batch), assembled
