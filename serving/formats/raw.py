"""The label map as an array: NumPy's formats, and bare bytes."""

from __future__ import annotations

import io

import numpy as np

from serving.formats.label_map import Encoded, MaskOptions, MaskView

NPY, NPZ, RAW = "application/x-npy", "application/x-npz", "application/octet-stream"


def write_npy(view: MaskView, options: MaskOptions) -> Encoded:
    """Class ids, uint8 ``[H,W]``; with ``confidence`` an npz that holds ``mask`` and it."""
    buffer = io.BytesIO()
    labels = np.ascontiguousarray(view.labels)
    if options.confidence:
        np.savez(buffer, mask=labels, confidence=view.certain())
        return Encoded(buffer.getvalue(), NPZ)
    np.save(buffer, labels, allow_pickle=False)
    return Encoded(buffer.getvalue(), NPY)


def write_raw(view: MaskView, options: MaskOptions) -> Encoded:
    """H x W bytes, row by row: the class ids and nothing else."""
    return Encoded(view.labels.tobytes(), RAW)
