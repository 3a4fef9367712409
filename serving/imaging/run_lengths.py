"""The run lengths of BMP files, unpacked by NumPy: no step of Python's for a run or a pixel.

Every command is a pair of bytes, and what some have behind them fills whole pairs. So the commands
of a stretch of the file are all of its pairs, but for those behind absolute runs and jumps: only
these are followed one by one, and all others are computed together. A stretch is small enough for
its arrays to fit the memory of :data:`serving.imaging.still.FIXED_MEMORY_BYTES`.

Nothing here imports the server: decoder processes load this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.imaging.still import BrokenImage

_Bytes = npt.NDArray[np.uint8]
_Integers = npt.NDArray[np.int64]

_STRETCH_PAIRS = 1 << 16
_BATCH_PIXELS = 1 << 18
# Second byte of a pair whose first is zero; above these it is the length of an absolute run.
_END_OF_ROW, _END, _JUMP = 0, 1, 2
_NO_END = "is truncated: its run lengths have no end"


@dataclass
class _Cursor:
    """The position of the next run in the image, rows counted from the first that is stored."""

    x: int = 0
    y: int = 0


def unpack_runs(data: memoryview, indices: _Bytes, nibbles: bool) -> None:
    """Fills ``indices`` from run lengths; what they leave out stays as it is.

    Args:
        data: the run lengths, from their first byte on.
        indices: uint8 ``[H,W]``, contiguous; the first row is the one that is stored first.
        nibbles: of 4 bits a pixel, else of 8.

    Raises:
        BrokenImage: a run or a jump leaves the image, or the file ends too early.
    """
    height, width = indices.shape
    codes = np.frombuffer(data, np.uint8)
    pairs = codes[: len(codes) & ~1].reshape(-1, 2)
    cursor = _Cursor()
    start = 0
    while start < len(pairs):
        stretch = pairs[start : start + _STRETCH_PAIRS]
        commands, following = _find_commands(stretch, nibbles)
        counts, values = (stretch[commands, k].astype(np.int64) for k in (0, 1))
        ends = np.flatnonzero((counts == 0) & (values == _END))
        if ends.size:
            kept = slice(0, int(ends[0]))
            commands, counts, values = commands[kept], counts[kept], values[kept]
        if not ends.size and not _is_whole(codes, start + int(commands[-1]), nibbles):
            raise BrokenImage(_NO_END)
        _draw(codes, start + commands, counts, values, indices, cursor, nibbles)
        if ends.size:
            return
        start += following
    if cursor.y < height - 1 or (cursor.y == height - 1 and cursor.x < width):
        raise BrokenImage(_NO_END)


def _is_whole(codes: _Bytes, pair: int, nibbles: bool) -> bool:
    """Returns whether the file holds all that the command at ``pair`` needs; padding may be
    missing."""
    count, value = int(codes[2 * pair]), int(codes[2 * pair + 1])
    if count or value < _JUMP:
        return True
    size = 2 if value == _JUMP else (value + 1) // 2 if nibbles else value
    return 2 * pair + 2 + size <= len(codes)


def _find_commands(stretch: _Bytes, nibbles: bool) -> tuple[_Integers, int]:
    """Returns which pairs are commands, and the pair behind the last one and what belongs to it."""
    length = len(stretch)
    values = stretch[:, 1].astype(np.int64)
    longer = np.flatnonzero((stretch[:, 0] == 0) & (values >= _JUMP))
    if not longer.size:
        return np.arange(length), length
    own = values[longer]
    # An absolute run is padded to a pair; the two bytes of a jump are one as well.
    behind = longer + 1 + ((own + 3) // 4 if nibbles else (own + 1) // 2)
    # From one to the next that is a command, and not part of what belongs to the one before.
    successors = np.searchsorted(longer, behind).data
    followed = []
    k = 0
    while k < len(longer):
        followed.append(k)
        k = successors[k]
    starts, ends = longer[followed], behind[followed]
    changes = np.zeros(int(max(length, ends[-1])) + 1, np.int32)
    changes[starts + 1] += 1
    changes[ends] -= 1
    return np.flatnonzero(np.cumsum(changes)[:length] == 0), max(length, int(ends[-1]))


def _draw(
    codes: _Bytes,
    pairs: _Integers,
    counts: _Integers,
    values: _Integers,
    indices: _Bytes,
    cursor: _Cursor,
    nibbles: bool,
) -> None:
    """Draws commands from where ``cursor`` is, which moves behind them.

    Args:
        pairs: where the commands stand in ``codes``, in pairs of bytes.
        counts, values: the two bytes of each.

    Raises:
        BrokenImage: one leaves the image.
    """
    if not pairs.size:
        return
    height, width = indices.shape
    is_escape = counts == 0
    is_jump = is_escape & (values == _JUMP)
    is_absolute = is_escape & (values > _JUMP)
    is_row_end = is_escape & (values == _END_OF_ROW)
    jumps = 2 * pairs[is_jump] + 2
    across, down = counts.copy(), is_row_end.astype(np.int64)
    across[is_absolute] = values[is_absolute]
    lengths = across.copy()
    across[is_jump], down[is_jump] = codes[jumps], codes[jumps + 1]
    # Where each command leaves off: sums of all steps, across since the last end of a row.
    rows = cursor.y + np.cumsum(down)
    sums = cursor.x + np.cumsum(across)
    order = np.arange(len(pairs))
    last_ends = np.maximum.accumulate(np.where(is_row_end, order, -1))
    columns = sums - np.where(last_ends >= 0, sums[last_ends], 0)
    is_run = lengths > 0
    xs, ys = (columns - lengths)[is_run], rows[is_run]
    if (
        (columns[is_jump] > width).any()
        or (rows[is_jump] >= height).any()
        or (xs >= width).any()
        or (ys >= height).any()
    ):
        raise BrokenImage("has run lengths that leave the image")
    cursor.x, cursor.y = int(columns[-1]), int(rows[-1])
    # Some encoders fill the last run of a row beyond its end.
    lengths = np.minimum(lengths[is_run], width - xs)
    targets = ys * width + xs
    sources = 2 * pairs[is_run] + np.where(is_absolute[is_run], 2, 1)
    is_repeated = ~is_absolute[is_run]
    totals = np.cumsum(lengths)
    flat = indices.reshape(-1)
    first = 0
    while first < len(lengths):
        drawn = int(totals[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(totals, drawn + _BATCH_PIXELS, "right")))
        batch = slice(first, end)
        steps = np.arange(int(totals[end - 1]) - drawn) - np.repeat(
            totals[batch] - lengths[batch] - drawn, lengths[batch]
        )
        source = np.repeat(sources[batch], lengths[batch])
        repeated = np.repeat(is_repeated[batch], lengths[batch])
        if nibbles:
            # A run repeats the two colours of its byte, the upper one first.
            packed = codes[source + np.where(repeated, 0, steps >> 1)]
            found = np.where(steps & 1, packed & 15, packed >> 4)
        else:
            found = codes[source + np.where(repeated, 0, steps)]
        flat[np.repeat(targets[batch], lengths[batch]) + steps] = found
        first = end
