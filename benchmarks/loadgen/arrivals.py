"""When requests are due in an open loop, whatever the server does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.float64]


def draw_poisson(per_second: float, seconds: float, seed: int = 0) -> Offsets:
    """A Poisson process: offsets in seconds, ascending, all below ``seconds``.

    Independent callers, each rare, arrive like this; the same seed draws the same arrivals.

    Raises:
        ValueError: a rate or a length that is not positive.
    """
    if per_second <= 0 or seconds <= 0:
        raise ValueError(f"needs a positive rate and length, got {per_second}/s for {seconds} s")
    rng = np.random.default_rng(seed)
    offsets = np.empty(0)
    while not len(offsets) or offsets[-1] < seconds:
        count = int(per_second * seconds) + 16
        more = np.cumsum(rng.exponential(1 / per_second, count))
        offsets = np.concatenate([offsets, more + (offsets[-1] if len(offsets) else 0.0)])
    return offsets[offsets < seconds]
