"""COCO's compressed run lengths, one mask a class (cocodataset/cocoapi, ``maskApi.c``).

Counts alternate between pixels outside and inside, column by column from the top left. From the
fourth on each is written as its difference to the last but one, five bits a character, the lowest
first, in two's complement; bit 5 says that more follow, and 48 is added to be printable.
"""

from __future__ import annotations

import json

import cv2
import numpy as np
import numpy.typing as npt

from serving.formats.class_statistics import class_statistics
from serving.formats.label_map import Encoded, MaskOptions, MaskView
from serving.imaging.jit import compiled, read_only
from serving.palette import LabelMap, label_type

MEDIA_TYPE = "application/json"

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

# An int32 in groups of five bits.
MOST_CHARACTERS = 7


def write_rle(view: MaskView, options: MaskOptions) -> Encoded:
    """Writes JSON whose entries' ``segmentation`` is what ``pycocotools.mask.decode`` takes.

    Only classes that occur have an entry: its area in pixels, its bbox ``[x, y, width, height]``,
    and with ``confidence`` its score, the mean confidence of its pixels, 0 to 1.
    """
    height, width = view.labels.shape
    confidence = view.certain() if options.confidence else None
    ids = np.iinfo(view.labels.dtype).max + 1
    text, first, bounds = _encode_columns(read_only(cv2.transpose(view.labels)), ids)
    written = text.tobytes().decode("ascii")
    annotations = []
    for share in class_statistics(view.labels, view.names, confidence):
        if not share.pixels:
            continue
        left, top, right, bottom = bounds[share.id].tolist()
        entry: dict[str, object] = {
            "category_id": share.id,
            "category_name": share.name,
            "area": share.pixels,
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "segmentation": {
                "size": [height, width],
                "counts": written[first[share.id] : first[share.id + 1]],
            },
        }
        if share.mean_confidence is not None:
            entry["score"] = round(share.mean_confidence, 4)
        annotations.append(entry)
    answer = {"height": height, "width": width, "annotations": annotations}
    return Encoded(
        json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode(), MEDIA_TYPE
    )


def warm(classes: int = 2) -> None:
    """Compiles the loops of this format, so that no request waits for it."""
    labels = np.zeros((1, 1), label_type(classes))
    _encode_columns(read_only(labels), np.iinfo(labels.dtype).max + 1)


@compiled
def _encode_columns(columns: LabelMap, ids: int) -> tuple[Bytes, Counts, Indices]:
    """Returns all classes' counts, from the transposed label map ``[W,H]``.

    Returns the text, where each id's part begins in it ``[ids + 1]``, and each id's first and
    last column and row, ``[ids,4]`` as left, top, right, bottom.
    """
    width, height = columns.shape
    flat = columns.reshape(-1)
    # As large as they can get; pages that are not touched cost nothing.
    label = np.empty_like(flat)
    end = np.empty(len(flat), np.int32)
    runs = np.zeros(ids, np.int64)
    bounds = np.empty((ids, 4), np.int32)
    bounds[:, 0], bounds[:, 1], bounds[:, 2:] = width, height, -1
    count = begin = 0
    while begin < len(flat):
        c = flat[begin]
        stop = begin + 1
        while stop < len(flat) and flat[stop] == c:
            stop += 1
        label[count], end[count] = c, stop
        runs[c] += 1
        count += 1
        left, right = begin // height, (stop - 1) // height
        top, bottom = begin - left * height, stop - 1 - right * height
        if left != right:
            top, bottom = 0, height - 1
        box = bounds[c]
        box[0], box[1] = min(box[0], left), min(box[1], top)
        box[2], box[3] = max(box[2], right), max(box[3], bottom)
        begin = stop

    room = np.zeros(ids + 1, np.int64)
    for c in range(ids):
        room[c + 1] = room[c] + MOST_CHARACTERS * (2 * runs[c] + 1)
    text = np.empty(room[ids], np.uint8)
    at = room[:ids].copy()
    done = np.zeros(ids, np.int32)  # where the id's last run ended
    before = np.zeros((ids, 2), np.int32)  # its last two counts, outside and inside
    written = np.zeros(ids, np.int64)
    begin = 0
    for k in range(count):
        c, stop = label[k], end[k]
        outside, inside = begin - done[c], stop - begin
        # The first three counts are written as they are.
        at[c] = _write_count(outside - (before[c, 0] if written[c] > 1 else 0), text, at[c])
        at[c] = _write_count(inside - (before[c, 1] if written[c] > 0 else 0), text, at[c])
        before[c, 0], before[c, 1] = outside, inside
        written[c] += 1
        done[c] = stop
        begin = stop
    for c in range(ids):
        if runs[c] and done[c] < len(flat):
            outside = len(flat) - done[c]
            at[c] = _write_count(outside - (before[c, 0] if written[c] > 1 else 0), text, at[c])

    first = np.zeros(ids + 1, np.int64)
    for c in range(ids):
        length = at[c] - room[c]
        first[c + 1] = first[c] + length
        for k in range(length):
            text[first[c] + k] = text[room[c] + k]
    return text[: first[ids]].copy(), first, bounds


@compiled
def _write_count(number: int, text: Bytes, at: int) -> int:
    """Returns one count; returns the place behind it."""
    while True:
        low = number & 31
        number >>= 5
        more = number != (-1 if low & 16 else 0)
        text[at] = low + 48 + (32 if more else 0)
        at += 1
        if not more:
            return at
