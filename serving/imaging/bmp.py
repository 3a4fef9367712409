"""Decodes BMP by NumPy: rows are stored plainly, so no library that reads it in C is needed.

Palettes of 1, 4 and 8 bits, run lengths of 4 and 8 bits, 24 bits, and 16 or 32 bits with any bit
fields that do not overlap: a field of ``n`` bits is scaled to 0 to 255 and rounded down, as
Pillow does. Alpha is dropped. Everything else is refused by its name.

Run lengths: every command is a pair of bytes, and what some have behind them fills whole pairs. So
the commands of a stretch of the file are all of its pairs, except for those behind absolute runs
and jumps: only these are followed one by one, and all others are computed together. A stretch is
small enough for its arrays to fit the memory of
:data:`serving.imaging.still.FIXED_MEMORY_BYTES`.

Nothing here imports the server: decoder processes load this module.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.imaging.still import BrokenImage, StillImage

_Bytes = npt.NDArray[np.uint8]

# Sizes of the headers that exist: OS/2 1 and 2, Windows 3, its additions by Adobe, 4 and 5.
_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_RGB, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
_OTHERS = {4: "JPEG inside BMP", 5: "PNG inside BMP", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
_BITS = {_RGB: (1, 4, 8, 16, 24, 32), _RLE8: (8,), _RLE4: (4,)}
_DEFAULT_MASKS = {16: (0x7C00, 0x03E0, 0x001F), 32: (0xFF0000, 0x00FF00, 0x0000FF)}
# Rows are converted this many pixels at a time, so that what lies between stays in the cache.
_BAND_PIXELS = 1 << 16


@dataclass(frozen=True)
class Layout:
    """The position of a BMP's pixels in its file, and what their bits mean."""

    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    masks: tuple[int, int, int]
    palette_start: int
    palette_entry: int
    colors: int
    pixels_start: int

    @property
    def row_bytes(self) -> int:
        """Rows start at multiples of four bytes."""
        return (self.width * self.bits + 31) // 32 * 4


def walk(data: memoryview) -> StillImage:
    """Reads the header of a BMP.

    Raises:
        BrokenImage: a variant that is not decoded here.
        struct.error: the file ends in its header.
    """
    layout = read_layout(data)
    if layout.compression in (_RLE8, _RLE4):
        # Run lengths never need eight bytes a pixel, jumps and ends of rows included.
        most = layout.pixels_start + 8 * (layout.width + 4) * layout.height
        end, complete = min(len(data), most), layout.pixels_start < len(data)
    else:
        end = layout.pixels_start + layout.row_bytes * layout.height
        complete = end <= len(data)
    return StillImage("BMP", layout.width, layout.height, parts=(data[:end],), complete=complete)


def read_layout(data: memoryview) -> Layout:
    """Reads what the headers say.

    Raises:
        BrokenImage: a variant that is not decoded here.
        struct.error: the file ends in its header.
    """
    pixels_start, header = struct.unpack_from("<II", data, 10)
    if header not in _HEADER_SIZES:
        raise BrokenImage(f"has a BMP header of {header} bytes, which no version of BMP has")
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = colors = 0
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        compression = colors = 0
        if header >= 40:
            compression, _, _, _, colors = struct.unpack_from("<IIiiI", data, 30)
    if width < 0:
        raise BrokenImage("has a negative width")
    if header == 64 and compression in (3, 4):
        raise BrokenImage("is packed in a way of OS/2 (Huffman or RLE24) that is not decoded here")
    palette_start, masks = 14 + header, _DEFAULT_MASKS.get(bits, (0, 0, 0))
    if compression in (_BITFIELDS, _ALPHA_BITFIELDS):
        masks = struct.unpack_from("<III", data, 54)
        if header == 40:
            palette_start += 12 if compression == _BITFIELDS else 16
        _check_masks(masks, bits)
    elif compression not in _BITS:
        name = _OTHERS.get(compression, f"compression {compression}")
        raise BrokenImage(f"uses {name}, which is not decoded here")
    elif bits not in _BITS[compression]:
        raise BrokenImage(f"has {bits} bits a pixel, which BMP does not have with its compression")
    if compression in (_RLE8, _RLE4) and height < 0:
        raise BrokenImage("has run lengths in rows from the top, which BMP does not have")
    if pixels_start < palette_start:
        raise BrokenImage("has its pixels inside its header")
    entry = 3 if header == 12 else 4
    if bits <= 8:
        most = 1 << bits
        colors = most if colors == 0 else min(colors, most)
        colors = min(colors, (pixels_start - palette_start) // entry)
    return Layout(
        width, abs(height), height < 0, bits, compression, masks,
        palette_start, entry, colors if bits <= 8 else 0, pixels_start,
    )  # fmt: skip


def _check_masks(masks: tuple[int, int, int], bits: int) -> None:
    if bits not in (16, 32):
        raise BrokenImage(f"has bit fields in {bits} bits a pixel; 16 or 32 can have them")
    seen = 0
    for mask in masks:
        if not _is_run(mask) or mask >> bits or mask & seen:
            shown = ", ".join(f"{each:#x}" for each in masks)
            raise BrokenImage(f"has bit fields that do not describe three colours: {shown}")
        seen |= mask


def _is_run(mask: int) -> bool:
    """Returns whether the bits that are set are neighbours, and at least one."""
    shifted = mask // (mask & -mask) if mask else 0
    return shifted > 0 and shifted & (shifted + 1) == 0


def decode(data: memoryview, out: _Bytes) -> None:
    """Decodes a BMP into ``out``, uint8 ``[H,W,3]`` RGB, every byte of it.

    Raises:
        BrokenImage: a variant that is not decoded here, or run lengths that leave the image.
    """
    layout = read_layout(data)
    rows = out if layout.top_down else out[::-1]
    palette = _palette(data, layout)
    if layout.compression in (_RLE8, _RLE4):
        indices = np.zeros((layout.height, layout.width), np.uint8)
        unpack_runs(data[layout.pixels_start :], indices, layout.compression == _RLE4)
        for band in _bands(layout):
            rows[band] = palette[indices[band]]
        return
    stored = np.frombuffer(
        data, np.uint8, layout.row_bytes * layout.height, layout.pixels_start
    ).reshape(layout.height, layout.row_bytes)
    for band in _bands(layout):
        rows[band] = _convert(stored[band], layout, palette)


def _bands(layout: Layout) -> Iterator[slice]:
    step = max(1, _BAND_PIXELS // layout.width)
    for start in range(0, layout.height, step):
        yield slice(start, min(start + step, layout.height))


def _palette(data: memoryview, layout: Layout) -> _Bytes:
    """Returns 256 colours, black where the file has fewer."""
    palette = np.zeros((256, 3), np.uint8)
    stored = np.frombuffer(
        data, np.uint8, layout.colors * layout.palette_entry, layout.palette_start
    ).reshape(layout.colors, layout.palette_entry)
    palette[: layout.colors] = stored[:, 2::-1]
    return palette


def _convert(stored: _Bytes, layout: Layout, palette: _Bytes) -> _Bytes:
    """Converts stored rows to ``[rows,W,3]``."""
    if layout.bits <= 8:
        if layout.bits == 1:
            indices = np.unpackbits(stored, axis=1)
        elif layout.bits == 4:
            indices = np.stack([stored >> 4, stored & 15], axis=-1).reshape(len(stored), -1)
        else:
            indices = stored
        colors: _Bytes = palette[indices[:, : layout.width]]
        return colors
    if layout.bits == 24:
        return stored[:, : 3 * layout.width].reshape(len(stored), layout.width, 3)[..., ::-1]
    words = stored[:, : layout.width * layout.bits // 8].view(f"<u{layout.bits // 8}")
    return np.stack([_field(words, mask) for mask in layout.masks], axis=-1)


def _field(words: npt.NDArray[np.unsignedinteger[Any]], mask: int) -> _Bytes:
    """Returns one colour of each word, 0 to 255."""
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    values = (words.astype(np.uint64) & mask) >> shift
    scaled = values if most == 255 else values * 255 // most
    return np.asarray(scaled, np.uint8)


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
