"""What a batcher is given and gives: its limits and scheduling, its answers, what it reports.

Source: triton-inference-server/common protobuf/model_config.proto, ``ModelDynamicBatching`` and
``ModelQueuePolicy``; Triton's docs/user_guide/batcher.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serving.imaging.restore import Prediction


@dataclass(frozen=True)
class QueuePolicy:
    """A ``ModelQueuePolicy``: what happens to the images that wait at one priority level.

    Attributes:
        field: the policy's own name in the configuration, for error texts.
        max_size: images that may wait at the level; 0 sets no limit.
        timeout_s: how long an image waits at most; 0 sets no limit.
        delays: an image that has waited so long goes behind the others (DELAY), instead of
            being refused (REJECT).
        allows_override: a request may set a shorter timeout.
    """

    field: str = "default_queue_policy"
    max_size: int = 0
    timeout_s: float = 0.0
    delays: bool = False
    allows_override: bool = False

    def choose_timeout_s(self, asked_s: float | None) -> float | None:
        """Returns the wait that the policy acts upon, None where there is none.

        ``asked_s`` is the request's parameter ``timeout``: it counts where the policy has no
        timeout, or allows to override it, and then only if it is shorter.
        """
        if not self.timeout_s:
            return asked_s
        if asked_s is None or not self.allows_override:
            return self.timeout_s
        return min(self.timeout_s, asked_s)


@dataclass(frozen=True)
class Scheduling:
    """A ``ModelDynamicBatching``: how images wait, in which order, and how many run together.

    Attributes:
        delay_s: the batching delay: how long the oldest image waits for others to share its run.
        preferred_sizes: ascending; none means that only a full batch goes at once.
        preserve_ordering: answers leave in the order in which the images came.
        priority_levels: 1 goes first; 0 means that all are equal.
        default_level: of requests that name no level, or one that is not there.
        default_policy: of levels that ``policies`` does not name.
    """

    delay_s: float = 0.0
    preferred_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_level: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    @property
    def first_level(self) -> int:
        """Returns the level that goes before all others."""
        return min(1, self.priority_levels)

    def level(self, priority: int) -> int:
        """Returns the level of a request's priority; 0 and unknown ones have the default level."""
        return priority if 1 <= priority <= self.priority_levels else self.default_level

    def policy(self, level: int) -> QueuePolicy:
        """Returns the policy of a level."""
        return self.policies.get(level, self.default_policy)

    def choose_size(self, waiting: int, max_batch_size: int, *, has_waited: bool) -> int:
        """Returns how many of ``waiting`` images run now; 0 during the batching delay.

        The largest preferred size that can be had goes at once; else, once the oldest image has
        waited ``delay_s`` (``has_waited``), whatever is there.
        """
        sizes = self.preferred_sizes or (max_batch_size,)
        possible = [size for size in sizes if size <= waiting]
        if possible:
            return possible[-1]
        return min(waiting, max_batch_size) if has_waited else 0


@dataclass(frozen=True)
class BatchLimits:
    """The bounds of a queue, over all its levels, and of the engine behind it.

    Attributes:
        max_queue_size: images that wait.
        max_queue_bytes: of their pixels.
        queue_timeout_ms: no image waits longer, whatever its policy.
        scheduling: the model's own ``dynamic_batching``.
        shed_late: refuse an image at once that would be answered after its deadline.
        max_failures: failed runs in a row after which the engine counts as broken.
        run_timeout_s: a run that takes longer is stuck: the engine counts as broken.
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
    """An observer of a batcher; it is called on the event loop."""

    def queue_changed(self, length: int) -> None: ...

    def batch_done(self, execution: Execution) -> None: ...

    def rejected(self, reason: str) -> None: ...

    def engine_failed(self, kind: str) -> None:
        """Reports a run that gave an image no answer; ``kind`` is one of ``ENGINE_FAILURES``."""
        ...
