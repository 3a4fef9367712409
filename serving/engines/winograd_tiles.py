"""Winograd's minimal filtering F(4, 3) along one axis, as matrices for a whole stretch of pixels.

Four neighbouring outputs of a filter with three taps need six products instead of twelve: six sums
of six inputs, times six sums of the taps, summed up to four outputs. Along both axes of an image
that is 36 instead of 144. The sums over the inputs of all tiles of a stretch, its dilation and its
zero padding are one matrix here, so that a library's matrix product makes them.

Sources: S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray, Fast
Algorithms for Convolutional Neural Networks, arXiv:1509.09308; the points, for their small rounding
errors: B. Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution,
arXiv:1803.10986.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

TAPS = 3
OUTPUTS = 4
PRODUCTS = OUTPUTS + TAPS - 1
CACHE_LINE = 64
# Where the polynomials are evaluated; the last point is infinity.
POINTS = (Fraction(0), *(Fraction(sign * n, 4) for n in (3, 6) for sign in (1, -1)))


@dataclass(frozen=True)
class Minimal:
    """``outputs = leave @ ((taps @ g) * (enter @ inputs))``.

    Attributes:
        enter: ``[6, 6]`` on inputs.
        taps: ``[6, 3]`` on the filter.
        leave: ``[4, 6]`` on products.
    """

    enter: Matrix
    taps: Matrix
    leave: Matrix


@cache
def minimal() -> Minimal:
    """Returns F(4, 3) by Toom and Cook: evaluate at :data:`POINTS`, multiply, interpolate;
    transposed."""
    enter, taps, leave = [], [], []
    for point in POINTS:
        others = [other for other in POINTS if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        enter.append([*_product(others), Fraction(0)])
        taps.append([point**power / scale for power in range(TAPS)])
        leave.append([point**power for power in range(OUTPUTS)])
    enter.append(_product(POINTS))
    taps.append([Fraction(int(power == TAPS - 1)) for power in range(TAPS)])
    leave.append([Fraction(int(power == OUTPUTS - 1)) for power in range(OUTPUTS)])
    return Minimal(_matrix(enter), _matrix(taps), _matrix(leave).T)


@dataclass(frozen=True)
class Stretch:
    """``outputs`` neighbouring outputs, from the inputs of ``dilation`` before to as many behind.

    Attributes:
        tiles: of four outputs that are ``dilation`` apart; some may be partly used.
        enter: ``[6 * tiles, outputs + 2 * dilation]``, rows by product, then by tile.
        leave: ``[outputs, 6 * tiles]``.
    """

    outputs: int
    dilation: int
    tiles: int
    enter: Matrix
    leave: Matrix


def tile_stretch(outputs: int, dilation: int) -> Stretch:
    """Returns the matrices of a stretch; inputs outside of the image are to be zero."""
    firsts = [
        first
        for residue in range(min(dilation, outputs))
        for first in range(residue, outputs, OUTPUTS * dilation)
    ]
    given = outputs + 2 * dilation
    enter = np.zeros((PRODUCTS, len(firsts), given))
    leave = np.zeros((outputs, PRODUCTS, len(firsts)))
    base = minimal()
    for tile, first in enumerate(firsts):
        for step in range(PRODUCTS):
            # Inputs behind the stretch cancel out of those outputs that are used.
            if first + step * dilation < given:
                enter[:, tile, first + step * dilation] = base.enter[:, step]
        for step in range(OUTPUTS):
            if first + step * dilation < outputs:
                leave[first + step * dilation, :, tile] = base.leave[step]
    rows = PRODUCTS * len(firsts)
    return Stretch(
        outputs, dilation, len(firsts), enter.reshape(rows, given), leave.reshape(outputs, rows)
    )


def transform_filters(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the factors of the products, rounded once: ``[K, C, 3, 3]`` -> ``[36, C, K]``.

    They begin at a cache line, as ONNX Runtime's own constants do: its kernels read whole lines.
    """
    outputs, inputs = weights.shape[:2]
    taps = np.kron(minimal().taps, minimal().taps)
    factors = _empty_at_line((PRODUCTS**2, inputs, outputs))
    for channel in range(0, inputs, 64):  # in float64 these are large
        part = weights[:, channel : channel + 64].transpose(2, 3, 1, 0).astype(np.float64)
        found = taps @ part.reshape(TAPS**2, -1)
        factors[:, channel : channel + 64] = found.reshape(PRODUCTS**2, -1, outputs)
    return factors


def _empty_at_line(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    count = int(np.prod(shape))
    room = np.empty(count + CACHE_LINE // 4, np.float32)
    first = -room.ctypes.data % CACHE_LINE // 4
    return room[first : first + count].reshape(shape)


def _product(roots: tuple[Fraction, ...] | list[Fraction]) -> list[Fraction]:
    """Coefficients of ``(t - root) * ...``, the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [up - root * same for up, same in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found


def _matrix(rows: list[list[Fraction]]) -> Matrix:
    return np.array([[float(value) for value in row] for row in rows])
