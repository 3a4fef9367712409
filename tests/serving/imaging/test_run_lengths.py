"""Run lengths of BMP files: the same pixels as a plain loop's, at a cost that is bounded."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from serving.imaging import bmp as run_lengths
from serving.imaging.still import BrokenImage

END_OF_ROW, END, NO_JUMP = b"\0\0", b"\0\1", b"\0\2\0\0"


def draw_plainly(data: bytes, indices: np.ndarray, nibbles: bool) -> None:
    """Draws one pixel after the other, as the format is described; a fault is an IndexError."""
    height, width = indices.shape
    x = y = position = 0
    while position + 2 <= len(data):
        count, value = data[position : position + 2]
        position += 2
        if count and nibbles:
            colors = ([value >> 4, value & 15] * count)[:count]
        elif count:
            colors = [value] * count
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value == 1:
            return
        elif value == 2:
            x, y, position = x + data[position], y + data[position + 1], position + 2
            if x > width or y >= height:
                raise IndexError
            continue
        else:
            size = (value + 1) // 2 if nibbles else value
            stored = data[position : position + size]
            if len(stored) < size:
                raise IndexError
            colors = [half for byte in stored for half in (byte >> 4, byte & 15)]
            colors = colors[:value] if nibbles else list(stored)
            position += size + size % 2
        if x >= width or y >= height:
            raise IndexError
        indices[y, x : x + len(colors)] = colors[: width - x]
        x += len(colors)
    if y < height - 1 or (y == height - 1 and x < width):
        raise IndexError


def odd_file(chance: random.Random, width: int, height: int, nibbles: bool) -> bytes:
    """Runs, absolute runs and jumps over an image; some beyond its edges, cut or damaged."""
    made, x, y = bytearray(), 0, 0
    while y < height:
        kind = chance.random()
        room = max(0, min(255, width - x))
        if room == 0 or kind < 0.1:
            made, x, y = made + END_OF_ROW, 0, y + 1
        elif kind < 0.6:
            count = chance.randint(1, room + (chance.random() < 0.02))
            made, x = made + bytes([min(count, 255), chance.randrange(256)]), x + min(count, 255)
        elif kind < 0.9 and room >= 3:
            count = chance.randint(3, room)
            size = (count + 1) // 2 if nibbles else count
            made, x = made + bytes([0, count]) + chance.randbytes(size + size % 2), x + count
        elif y + 1 < height:
            across, down = chance.randint(0, room), chance.randint(0, min(2, height - 1 - y))
            made, x, y = made + bytes([0, 2, across, down]), x + across, y + down
    made += END * (chance.random() < 0.7)
    if made and chance.random() < 0.3:
        for _ in range(chance.randint(1, 3)):
            made[chance.randrange(len(made))] = chance.choice([0, 1, 2, 3, 5, 255])
    if made and chance.random() < 0.2:
        del made[chance.randrange(len(made)) :]
    return bytes(made + chance.randbytes(chance.choice([0, 0, 0, 1, 4])))


@pytest.mark.parametrize("stretch", [1, 2, 7, 64, 1 << 16])
@pytest.mark.parametrize("nibbles", [False, True])
def test_pixels_are_those_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, stretch: int, nibbles: bool
) -> None:
    """Wherever the stretches end that are unpacked at a time."""
    monkeypatch.setattr(run_lengths, "_STRETCH_PAIRS", stretch)
    monkeypatch.setattr(run_lengths, "_BATCH_PIXELS", 3 * stretch)
    chance = random.Random(stretch)
    drawn = 0
    for _ in range(200):
        width, height = chance.choice([1, 2, 3, 5, 17, 300]), chance.choice([1, 2, 3, 9])
        data = odd_file(chance, width, height, nibbles)
        expected, found = (np.zeros((height, width), np.uint8) for _ in range(2))
        try:
            draw_plainly(data, expected, nibbles)
        except IndexError:
            with pytest.raises(BrokenImage, match=r"leave the image|truncated"):
                run_lengths.unpack_runs(memoryview(data), found, nibbles)
            continue
        run_lengths.unpack_runs(memoryview(data), found, nibbles)
        np.testing.assert_array_equal(found, expected)
        drawn += 1
    assert 50 < drawn < 200


def test_ten_million_runs_take_no_slow_step_each() -> None:
    """Half a second, measured; seven where a loop of Python's takes a step for each."""
    indices = np.zeros((2000, 5000), np.uint8)
    began = time.process_time()
    data = (b"\1\7" * 5000 + END_OF_ROW) * 2000 + END
    run_lengths.unpack_runs(memoryview(data), indices, nibbles=False)
    assert time.process_time() - began < 4
    assert (indices == 7).all()


def test_jumps_to_nowhere_cost_little() -> None:
    indices = np.zeros((20, 50), np.uint8)
    began = time.process_time()
    run_lengths.unpack_runs(memoryview(NO_JUMP * (1 << 20) + END), indices, nibbles=False)
    assert time.process_time() - began < 4
    assert not indices.any()
