"""What goes into a batcher and comes out: its limits, and what it tells of images and runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from serving.batching.queue_policy import Scheduling
from serving.engine import Prediction


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a queue, over all its levels, and of the engine behind it.

    Attributes:
        max_queue_size: images that wait.
        max_queue_bytes: of their pixels.
        queue_timeout_ms: no image waits longer, whatever its policy.
        scheduling: the model's own ``dynamic_batching``.
        shed_late: refuse an image at once that would be answered after its deadline.
        max_failures: failed runs in a row after which the engine counts as broken.
        run_timeout_s: a run that takes longer hangs: the engine counts as broken.
    """

    max_queue_size: int
    max_queue_bytes: int
    queue_timeout_ms: float
    scheduling: Scheduling = field(default_factory=Scheduling)
    shed_late: bool = False
    max_failures: int = 3
    run_timeout_s: float = 300.0


@dataclass(frozen=True)
class Inferred:
    """One image's prediction, and where its time went, in seconds."""

    prediction: Prediction
    queue_seconds: float
    infer_seconds: float
    batch_size: int


@dataclass(frozen=True)
class Execution:
    """One run of an engine that succeeded: its images, and where its time went, in seconds."""

    size: int
    input_seconds: float
    infer_seconds: float
    output_seconds: float


class BatchObserver(Protocol):
    """Is told what the batcher does; calls come on the event loop."""

    def queue_changed(self, length: int) -> None: ...

    def batch_done(self, execution: Execution) -> None: ...

    def rejected(self, reason: str) -> None: ...
