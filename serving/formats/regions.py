"""Connected regions of a label map: pixels of one class that share edges.

Runs of equal pixels in a row are joined to runs of the row above (union-find), so that the cost
grows with the boundaries more than with the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.imaging.jit import compiled, read_only
from serving.palette import LabelMap as Labels

Confidence = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one label map, in the order of their first pixels.

    Row ``y`` has the runs ``row_first[y]`` to ``row_first[y + 1]``; run r starts in column
    ``run_start[r]`` and belongs to region ``run_region[r]``. Of each region: its class, its pixels,
    and the sum of their confidence (0 without one).
    """

    row_first: Indices
    run_start: Indices
    run_region: Indices
    label: Labels
    area: Counts
    confidence_sum: Counts


def find_regions(labels: Labels, confidence: Confidence | None = None) -> Regions:
    """Returns the regions of ``labels``, ``[H,W]``; ``confidence`` is uint8 ``[H,W]``."""
    nothing = np.empty((0, 0), np.uint8)
    certain = nothing if confidence is None else confidence
    return Regions(*_find(read_only(labels), read_only(certain)))


@compiled
def _find(
    labels: Labels, confidence: Confidence
) -> tuple[Indices, Indices, Indices, Labels, Counts, Counts]:
    height, width = labels.shape
    row_first = np.empty(height + 1, np.int32)
    # As large as they can get; pages that are not touched cost nothing.
    start = np.empty(labels.size, np.int32)
    parent = np.empty(labels.size, np.int32)
    count = 0
    for y in range(height):
        row_first[y] = count
        above, above_end = (row_first[y - 1], count) if y > 0 else (0, 0)
        row = labels[y]
        x = 0
        while x < width:
            label = row[x]
            end = x + 1
            while end < width and row[end] == label:
                end += 1
            start[count] = x
            parent[count] = count
            while above < above_end and _end(start, above, above_end, width) <= x:
                above += 1
            k = above
            while k < above_end and start[k] < end:
                if labels[y - 1, start[k]] == label:
                    _join(parent, k, count)
                k += 1
            count += 1
            x = end
    row_first[height] = count
    return _number(labels, confidence, row_first, start[:count].copy(), parent)


@compiled
def _end(start: Indices, k: int, row_end: int, width: int) -> int:
    """Returns the column after the end of run ``k``, of a row whose runs end before ``row_end``."""
    return start[k + 1] if k + 1 < row_end else width


@compiled
def _join(parent: Indices, first: int, second: int) -> None:
    """Makes one set of two; the root is the lowest run."""
    while parent[first] != first:
        parent[first] = parent[parent[first]]
        first = parent[first]
    while parent[second] != second:
        parent[second] = parent[parent[second]]
        second = parent[second]
    if first < second:
        parent[second] = first
    else:
        parent[first] = second


@compiled
def _number(
    labels: Labels, confidence: Confidence, row_first: Indices, start: Indices, parent: Indices
) -> tuple[Indices, Indices, Indices, Labels, Counts, Counts]:
    """Numbers the sets from 0 and measures them."""
    height, width = labels.shape
    region = np.empty(len(start), np.int32)
    regions = 0
    for k in range(len(start)):
        # A parent comes before its children, so that it is numbered already.
        if parent[k] == k:
            region[k] = regions
            regions += 1
        else:
            region[k] = region[parent[k]]
    label = np.empty(regions, labels.dtype)
    area = np.zeros(regions, np.int64)
    confidence_sum = np.zeros(regions, np.int64)
    for y in range(height):
        for k in range(row_first[y], row_first[y + 1]):
            end = _end(start, k, row_first[y + 1], width)
            label[region[k]] = labels[y, start[k]]
            area[region[k]] += end - start[k]
            if confidence.size:
                total = np.int64(0)
                for x in range(start[k], end):
                    total += confidence[y, x]
                confidence_sum[region[k]] += total
    return row_first, start, region, label, area, confidence_sum
