"""Reads parts of a model's configuration: classes, colours, geometry and ``dynamic_batching``.

The segmentation facts are in ``parameters``. ``where`` is what errors name: ``config.pbtxt``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from tritonclient.grpc import model_config_pb2

from serving.batching.queue import QueuePolicy, Scheduling
from serving.errors import InvalidModel
from serving.imaging.geometry import DEFAULT_TILE_OVERLAP, MAX_TILE_OVERLAP, RESIZES
from serving.palette import MAX_CLASSES, LabelSet, default_palette, largest_id, parse_palette
from serving.parsing import read_text

DynamicBatching: TypeAlias = model_config_pb2.ModelDynamicBatching
PolicyMessage: TypeAlias = model_config_pb2.ModelQueuePolicy

LABELS_FILE = "labels.txt"


def read_resize(where: Path, parameters: Mapping[str, str]) -> str:
    """Returns one of ``serving.imaging.geometry.RESIZES``, by default the first.

    Raises:
        InvalidModel: it says something else.
    """
    resize = parameters.get("resize", RESIZES[0])
    if resize not in RESIZES:
        raise InvalidModel(f"{where}: parameters.resize is {resize!r}; known: {', '.join(RESIZES)}")
    return resize


def read_tile_overlap(where: Path, parameters: Mapping[str, str]) -> float:
    """Returns what neighbouring tiles share at least, as a part of their length.

    Raises:
        InvalidModel: not from 0 to ``serving.imaging.geometry.MAX_TILE_OVERLAP``.
    """
    text = parameters.get("tile_overlap", str(DEFAULT_TILE_OVERLAP))
    try:
        overlap = float(text)
    except ValueError:
        overlap = -1.0
    if not 0.0 <= overlap <= MAX_TILE_OVERLAP:
        raise InvalidModel(
            f"{where}: parameters.tile_overlap is {text!r}; expected a part of the "
            f"tile's length, 0 to {MAX_TILE_OVERLAP}"
        )
    return overlap


def read_labels(where: Path, parameters: Mapping[str, str], folder: Path | None) -> LabelSet:
    """Reads ``labels.txt``, or without a ``folder`` the parameter ``classes`` alone.

    Raises:
        InvalidModel: the message names the file and the field.
    """
    source = where if folder is None else folder / LABELS_FILE
    try:
        declared = _parse_classes(parameters["classes"]) if "classes" in parameters else None
        names = declared if folder is None else _read_names(folder / LABELS_FILE)
        palette = parameters.get("palette")
        colors = parse_palette(palette) if palette else default_palette(len(names or ()))
        most = largest_id(len(names or ()))
        ignore_label = _parse_ignore_label(parameters.get("ignore_label", str(most)), most)
    except OSError as error:
        raise InvalidModel(f"{source}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{where}: parameters: {error}") from None
    if names is None:
        raise InvalidModel(
            f"{where}: no parameter classes, a JSON array of the names of the classes"
        )
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InvalidModel(f"{source}: {len(names)} classes; a label map holds 1 to {MAX_CLASSES}")
    if declared not in (None, names):
        raise InvalidModel(
            f"{where}: parameters.classes and {LABELS_FILE} differ; "
            f"{LABELS_FILE} is the source: {', '.join(names[:5])}..."
        )
    if len(colors) != len(names):
        raise InvalidModel(f"{where}: palette has {len(colors)} colours for {len(names)} classes")
    return LabelSet(names, colors, ignore_label)


def _parse_classes(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes is {text[:40]!r}; expected a JSON array of the classes' names")
    return tuple(names)


def _parse_ignore_label(text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > most:
        raise ValueError(
            f"ignore_label is {text[:40]!r}; expected 0 to {most}, as the label map's pixels are"
        )
    return int(text)


def _read_names(file: Path) -> tuple[str, ...]:
    try:
        text = read_text(file, regular=True)
    except FileNotFoundError:
        raise InvalidModel(f"{file} is missing: one class name a line") from None
    except ValueError as error:
        raise InvalidModel(str(error)) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_scheduling(where: Path, queue: DynamicBatching, max_batch_size: int) -> Scheduling:
    """Reads and checks ``dynamic_batching``.

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
