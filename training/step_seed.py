"""The seed of what is random within one step."""

from __future__ import annotations

import numpy as np


def step_seed(seed: int, epoch: int, iteration: int, rank: int = 0) -> int:
    """A function of the place in the run and the process; 31 bits, which every framework takes."""
    place = np.random.SeedSequence((seed, epoch, iteration, rank))
    return int(place.generate_state(1)[0]) >> 1
