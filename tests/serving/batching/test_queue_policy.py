"""Triton's ``dynamic_batching``: read, refused where it contradicts itself, and applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.batching.queue import QueuePolicy, Scheduling
from serving.errors import InvalidModel
from serving.models.repository import read_model
from tests.support.band_model import write_model


def read_queue(repository: Path, queue: str) -> Scheduling:
    config = write_model(repository) / "config.pbtxt"
    text = config.read_text().replace("dynamic_batching { }", f"dynamic_batching {{ {queue} }}")
    config.write_text(text)
    return read_model(config.parent).scheduling


def test_every_field_is_read(tmp_path: Path) -> None:
    policy = "{ timeout_action: DELAY default_timeout_microseconds: 2000 max_queue_size: 3 }"
    found = read_queue(
        tmp_path,
        "preferred_batch_size: [ 4, 2 ] max_queue_delay_microseconds: 1500 "
        "priority_levels: 2 default_priority_level: 2 "
        f"priority_queue_policy {{ key: 1 value {policy} }} "
        "default_queue_policy { allow_timeout_override: true }",
    )
    default = QueuePolicy("default_queue_policy", allows_override=True)
    first = QueuePolicy("priority_queue_policy[1]", 3, 0.002, delays=True)
    assert found == Scheduling(0.0015, (2, 4), False, 2, 2, default, {1: first})
    assert [found.policy(level) for level in (1, 2)] == [first, default]


@pytest.mark.parametrize(
    ("queue", "text"),
    [
        ("preferred_batch_size: [ 5 ]", "max_batch_size, 4"),
        ("preferred_batch_size: [ 0 ]", "preferred_batch_size"),
        ("preferred_batch_size: [ 4, 0, 2 ]", r"preferred_batch_size is \[0, 2, 4\]"),
        ("preferred_batch_size: [ 1, 5 ]", r"preferred_batch_size is \[1, 5\]"),
        ("priority_queue_policy { key: 1 value { } }", "priority_queue_policy names level 1"),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "preserve_ordering and priority_levels",
        ),
        (
            "preserve_ordering: true default_queue_policy "
            "{ timeout_action: DELAY default_timeout_microseconds: 1 }",
            r"preserve_ordering and default_queue_policy\.timeout_action",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, queue: str, text: str) -> None:
    with pytest.raises(InvalidModel, match=text):
        read_queue(tmp_path, queue)


@pytest.mark.parametrize(
    ("sizes", "expected"), [("1", (1,)), ("4", (4,)), ("4, 4", (4,)), ("4, 1", (1, 4))]
)
def test_preferred_sizes_may_be_one_or_the_largest(
    tmp_path: Path, sizes: str, expected: tuple[int, ...]
) -> None:
    assert read_queue(tmp_path, f"preferred_batch_size: [ {sizes} ]").preferred_sizes == expected


@pytest.mark.parametrize(
    ("preferred", "waiting", "has_waited", "size"),
    [
        ((), 3, False, 0),
        ((), 3, True, 3),
        ((), 8, False, 8),
        ((), 11, True, 8),
        ((4, 6), 3, False, 0),
        ((4, 6), 5, False, 4),
        ((4, 6), 5, True, 4),
        ((4, 6), 9, False, 6),
        ((4, 6), 3, True, 3),
        ((2,), 1, True, 1),
    ],
)
def test_the_largest_preferred_size_goes_at_once(
    preferred: tuple[int, ...], waiting: int, has_waited: bool, size: int
) -> None:
    found = Scheduling(preferred_sizes=preferred).choose_size(waiting, 8, has_waited=has_waited)
    assert found == size


@pytest.mark.parametrize(
    ("default_s", "allows", "asked_s", "timeout_s"),
    [
        (0.0, False, None, None),
        (0.0, False, 2.0, 2.0),
        (1.0, False, 0.5, 1.0),
        (1.0, True, 0.5, 0.5),
        (1.0, True, 2.0, 1.0),
        (1.0, True, None, 1.0),
    ],
)
def test_a_request_may_only_shorten_its_timeout(
    default_s: float, allows: bool, asked_s: float | None, timeout_s: float | None
) -> None:
    policy = QueuePolicy(timeout_s=default_s, allows_override=allows)
    assert policy.choose_timeout_s(asked_s) == timeout_s
