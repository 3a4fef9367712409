"""Triton's ``dynamic_batching``: how images wait, in which order, and how many run together.

Source: triton-inference-server/common protobuf/model_config.proto, ``ModelDynamicBatching`` and
``ModelQueuePolicy``; Triton's docs/user_guide/batcher.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tritonclient.grpc import model_config_pb2

from serving.errors import InvalidModel

DynamicBatching: TypeAlias = model_config_pb2.ModelDynamicBatching
PolicyMessage: TypeAlias = model_config_pb2.ModelQueuePolicy


@dataclass(frozen=True)
class QueuePolicy:
    """``ModelQueuePolicy``: what becomes of the images that wait at one priority level.

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
        """The wait that the policy acts upon, None where there is none.

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
    """``ModelDynamicBatching``.

    Attributes:
        delay_s: how long the oldest image waits for company.
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
        """The level that goes before all others."""
        return min(1, self.priority_levels)

    def level(self, priority: int) -> int:
        """The level of a request's priority; 0 and what is unknown take the default."""
        return priority if 1 <= priority <= self.priority_levels else self.default_level

    def policy(self, level: int) -> QueuePolicy:
        """The policy of a level."""
        return self.policies.get(level, self.default_policy)

    def choose_size(self, waiting: int, max_batch_size: int, *, has_waited: bool) -> int:
        """How many of ``waiting`` images run now; 0: wait for company.

        The largest preferred size that can be had goes at once; else, once the oldest image has
        waited ``delay_s`` (``has_waited``), whatever is there.
        """
        sizes = self.preferred_sizes or (max_batch_size,)
        possible = [size for size in sizes if size <= waiting]
        if possible:
            return possible[-1]
        return min(waiting, max_batch_size) if has_waited else 0


def read_scheduling(where: Path, queue: DynamicBatching, max_batch_size: int) -> Scheduling:
    """Checks ``dynamic_batching``.

    Raises:
        InvalidModel: levels or sizes that do not exist, or ``preserve_ordering`` with what
            changes the order; Triton refuses the same.
    """
    levels = queue.priority_levels
    lowest = 1 if levels else 0
    if not lowest <= queue.default_priority_level <= levels:
        raise InvalidModel(
            f"{where}: dynamic_batching.default_priority_level is {queue.default_priority_level}; "
            f"expected {lowest} to priority_levels, {levels}"
        )
    unknown = sorted(level for level in queue.priority_queue_policy if not 1 <= level <= levels)
    if unknown:
        raise InvalidModel(
            f"{where}: dynamic_batching.priority_queue_policy names level {unknown[0]}; "
            f"expected 1 to priority_levels, {levels}"
        )
    sizes = tuple(sorted(set(queue.preferred_batch_size)))
    if sizes and not 1 <= sizes[0] <= sizes[-1] <= max_batch_size:
        raise InvalidModel(
            f"{where}: dynamic_batching.preferred_batch_size is {list(sizes)}; "
            f"expected 1 to max_batch_size, {max_batch_size}"
        )
    default = _read_policy("default_queue_policy", queue.default_queue_policy)
    policies = {
        level: _read_policy(f"priority_queue_policy[{level}]", policy)
        for level, policy in queue.priority_queue_policy.items()
    }
    if queue.preserve_ordering:
        delaying = [p.field for p in (default, *policies.values()) if p.delays and p.timeout_s]
        if levels > 1 or delaying:
            other = "priority_levels" if levels > 1 else f"{delaying[0]}.timeout_action DELAY"
            raise InvalidModel(
                f"{where}: dynamic_batching.preserve_ordering and {other} contradict each other; "
                f"leave one of them out"
            )
    return Scheduling(
        delay_s=queue.max_queue_delay_microseconds / 1e6,
        preferred_sizes=sizes,
        preserve_ordering=queue.preserve_ordering,
        priority_levels=levels,
        default_level=queue.default_priority_level,
        default_policy=default,
        policies=policies,
    )


def _read_policy(field: str, policy: PolicyMessage) -> QueuePolicy:
    return QueuePolicy(
        field=field,
        max_size=policy.max_queue_size,
        timeout_s=policy.default_timeout_microseconds / 1e6,
        delays=policy.timeout_action == PolicyMessage.DELAY,
        allows_override=policy.allow_timeout_override,
    )
