"""A JPEG encoder that can do what ordinary ones do not: any sampling, any scans, any markers.

Baseline, extended (8 and 12 bits) and progressive Huffman files after ITU T.81. It is slow, and its
Huffman tables are flat: all symbols are always there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float64]
Blocks = npt.NDArray[np.int64]

# ITU T.81, figure A.6.
ZIGZAG = sorted(
    range(64),
    key=lambda k: (k // 8 + k % 8, k // 8 if (k // 8 + k % 8) % 2 else k % 8),
)
_N = np.arange(8)
_DCT = np.cos((2 * _N[None, :] + 1) * _N[:, None] * np.pi / 16) / 2
_DCT[0] /= np.sqrt(2)
# Codes of equal length; of as many ones there is none, so the last symbol has a bit more.
_DC_CODES = {symbol: format(symbol, "04b") for symbol in range(12)}
_DC_CODES |= {symbol: format(0b110000 + symbol - 12, "06b") for symbol in range(12, 16)}
_AC_CODES = {symbol: format(symbol, "08b") for symbol in range(255)} | {255: "1" * 8 + "0"}


@dataclass(frozen=True)
class Scan:
    """Which components (by index), coefficients ``start`` to ``end`` and bits a scan brings.

    ``high`` is 0 for the first bits of a coefficient, ``low`` the last bit that the scan brings.
    """

    components: tuple[int, ...]
    start: int = 0
    end: int = 63
    high: int = 0
    low: int = 0


@dataclass(frozen=True)
class Component:
    """Quantised coefficients in zigzag order, ``[rows, columns, 64]``, filled to whole MCUs."""

    across: int
    down: int
    blocks: Blocks
    # Blocks that hold pixels: all that a scan of this component alone has.
    rows: int
    columns: int


def segment(marker: int, body: bytes = b"") -> bytes:
    """A marker segment with its length."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def quantised(
    planes: Sequence[Plane], sampling: Sequence[tuple[int, int]], step: int, bits: int = 8
) -> list[Component]:
    """The planes, all of the same size, by their sampling factors (across, down)."""
    most = [max(factors) for factors in zip(*sampling, strict=True)]
    height, width = planes[0].shape
    mcus = [-(-side // (8 * most[1 - axis])) for axis, side in enumerate((height, width))]
    components = []
    for plane, (across, down) in zip(planes, sampling, strict=True):
        tall, wide = -(-height * down // most[1]), -(-width * across // most[0])
        y = np.minimum((np.arange(tall) + 0.5) * most[1] / down, height - 1).astype(int)
        x = np.minimum((np.arange(wide) + 0.5) * most[0] / across, width - 1).astype(int)
        rows, columns = mcus[0] * down, mcus[1] * across
        small = plane[y][:, x] - (1 << (bits - 1))
        small = np.pad(small, ((0, rows * 8 - tall), (0, columns * 8 - wide)), mode="edge")
        cells = small.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3)
        found = np.rint(_DCT @ cells @ _DCT.T / step).astype(np.int64)
        blocks = found.reshape(rows, columns, 64)[..., ZIGZAG]
        components.append(Component(across, down, blocks, -(-tall // 8), -(-wide // 8)))
    return components


def tables(step: int, *, wide: bool = False, count: int = 1) -> bytes:
    """DQT and DHT: the same quantisation step everywhere, of 16 bits where ``wide``."""
    entry = struct.pack(">H" if wide else ">B", step)
    found = b"".join(
        segment(0xDB, bytes([number | wide << 4]) + entry * 64) for number in range(count)
    )
    for kind, codes in ((0x00, _DC_CODES), (0x10, _AC_CODES)):
        lengths = [len(code) for code in codes.values()]
        counts = bytes(lengths.count(length) for length in range(1, 17))
        found += segment(0xC4, bytes([kind]) + counts + bytes(codes))
    return found


def frame(
    components: Sequence[Component],
    height: int,
    width: int,
    marker: int = 0xC0,
    *,
    ids: Sequence[int] = (),
    bits: int = 8,
) -> bytes:
    """The SOF segment."""
    names = ids or range(1, len(components) + 1)
    body = struct.pack(">BHHB", bits, height, width, len(components))
    for name, part in zip(names, components, strict=True):
        body += bytes([name, part.across << 4 | part.down, 0])
    return segment(marker, body)


def scan(
    components: Sequence[Component],
    which: Scan,
    *,
    ids: Sequence[int] = (),
    restart: int = 0,
    progressive: bool = False,
) -> bytes:
    """The SOS segment and its entropy-coded data; ``restart`` in MCUs, 0 for no markers."""
    names = ids or range(1, len(components) + 1)
    body = bytes([len(which.components)])
    for index in which.components:
        body += bytes([names[index], 0])
    body += bytes([which.start, which.end, which.high << 4 | which.low])
    writer = _Writer(which, progressive)
    units = list(_units(components, which))
    parts = []
    interval = restart or len(units)
    for number, begin in enumerate(range(0, len(units), interval)):
        if number:
            parts.append(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        writer.restart()
        for unit in units[begin : begin + interval]:
            for index, block in unit:
                writer.write(index, block)
        parts.append(writer.flush())
    return segment(0xDA, body) + b"".join(parts)


def _units(
    components: Sequence[Component], which: Scan
) -> Iterator[list[tuple[int, npt.NDArray[np.int64]]]]:
    """Blocks MCU by MCU; of one component alone, block by block."""
    if len(which.components) == 1:
        index = which.components[0]
        part = components[index]
        for row in range(part.rows):
            for column in range(part.columns):
                yield [(index, part.blocks[row, column])]
        return
    first = components[which.components[0]]
    for row in range(len(first.blocks) // first.down):
        for column in range(first.blocks.shape[1] // first.across):
            yield [
                (index, part.blocks[row * part.down + y, column * part.across + x])
                for index in which.components
                for part in (components[index],)
                for y in range(part.down)
                for x in range(part.across)
            ]


def _amplitude(value: int) -> str:
    """As many bits as the value has; negative ones as their complement."""
    size = abs(value).bit_length()
    return format(value if value > 0 else value + (1 << size) - 1, f"0{size}b") if size else ""


class _Writer:
    """Turns blocks into bits."""

    def __init__(self, which: Scan, progressive: bool) -> None:
        self._scan = which
        self._progressive = progressive
        self._bits: list[str] = []
        self._before: dict[int, int] = {}

    def restart(self) -> None:
        self._before.clear()

    def flush(self) -> bytes:
        bits = "".join(self._bits)
        self._bits.clear()
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
        return data.replace(b"\xff", b"\xff\0")

    def write(self, index: int, block: npt.NDArray[np.int64]) -> None:
        which, values = self._scan, block.tolist()
        if which.start == 0:
            if which.high:
                self._bits.append(str(values[0] >> which.low & 1))
            else:
                value = values[0] >> which.low
                change = value - self._before.get(index, 0)
                self._before[index] = value
                self._bits += (_DC_CODES[abs(change).bit_length()], _amplitude(change))
            if self._progressive:
                return
        if which.high:
            self._refine(values)
        else:
            self._alternate(values)

    def _alternate(self, values: list[int]) -> None:
        run = 0
        for k in range(max(1, self._scan.start), self._scan.end + 1):
            value = (abs(values[k]) >> self._scan.low) * (1 if values[k] > 0 else -1)
            if not value:
                run += 1
                continue
            while run > 15:
                self._bits.append(_AC_CODES[0xF0])
                run -= 16
            self._bits += (_AC_CODES[run << 4 | abs(value).bit_length()], _amplitude(value))
            run = 0
        if run:
            self._bits.append(_AC_CODES[0])

    def _refine(self, values: list[int]) -> None:
        """One bit more of each coefficient that is known, and those that become known."""
        sizes = [abs(value) >> self._scan.low for value in values]
        span = range(self._scan.start, self._scan.end + 1)
        last = max((k for k in span if sizes[k] == 1), default=0)
        run, held = 0, ""
        for k in span:
            if sizes[k] == 0:
                run += 1
                continue
            while run > 15 and k <= last:
                self._bits += (_AC_CODES[0xF0], held)
                run, held = run - 16, ""
            if sizes[k] > 1:
                held += str(sizes[k] & 1)
                continue
            self._bits += (_AC_CODES[run << 4 | 1], "1" if values[k] > 0 else "0", held)
            run, held = 0, ""
        if run or held:
            self._bits += (_AC_CODES[0], held)
