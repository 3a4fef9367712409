"""How much a pixel of each class weighs in the loss."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def balance_classes(pixels: npt.NDArray[np.int64], power: float) -> npt.NDArray[np.float32]:
    """Weights ``(median frequency / frequency) ** power`` of present classes, absent ones 1.

    ``power`` 0 weighs all alike; 1 is median-frequency balancing (Eigen and Fergus, 2015).
    """
    frequency = pixels / max(1, pixels.sum())
    present = frequency > 0
    weights = np.ones(len(pixels), np.float64)
    if present.any():
        weights[present] = (np.median(frequency[present]) / frequency[present]) ** power
    return weights.astype(np.float32)
