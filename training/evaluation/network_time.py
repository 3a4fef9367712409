"""What the network takes an image: summarised as the published tables call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NetworkTime:
    """Milliseconds an image: all views that the network is shown of it, one after the other.

    Copies to and from the device are included, and it has finished; decoding, label maps and
    scores are not. Each size of the network was warmed up before.

    Attributes:
        name: ``t_gpu`` or ``t_cpu``.
    """

    name: str
    images: int
    mean_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.name} {self.mean_ms:.2f} ms an image, {1000 / self.mean_ms:.1f} fps "
            f"(median {self.median_ms:.2f}, 95 % below {self.p95_ms:.2f}, "
            f"99 % below {self.p99_ms:.2f})"
        )


def summarise_time(seconds: Sequence[float], on_gpu: bool) -> NetworkTime | None:
    """Of the seconds that each image took; None without any."""
    if not seconds:
        return None
    milliseconds = 1000 * np.asarray(seconds)
    median, p95, p99 = np.percentile(milliseconds, (50, 95, 99)).tolist()
    return NetworkTime(
        "t_gpu" if on_gpu else "t_cpu",
        len(seconds),
        float(milliseconds.mean()),
        median,
        p95,
        p99,
    )
