"""Bilinear resizes as ONNX nodes with static sizes and a symbolic batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


def resize_nodes(
    name: str, source: str, lengths: Sequence[int], outputs: Sequence[int], aligned: bool
) -> tuple[tuple[NodeProto, ...], tuple[TensorProto, ...]]:
    """Returns a Resize of [N, C, *lengths] to [N, C, *outputs]; no nodes where both are equal.

    ``aligned`` is MXNet's ``align_corners``. Scales, because sizes would fix the batch too
    (``axes`` came with opset 18); where corners are aligned they set only the output size.
    """
    if tuple(lengths) == tuple(outputs):
        return (), ()
    scales = [resize_scale(n, out) for n, out in zip(lengths, outputs, strict=True)]
    constant = numpy_helper.from_array(np.array([1, 1, *scales], np.float32), f"{name}_scales")
    node = helper.make_node(
        "Resize",
        [source, "", constant.name],
        [name],
        name=name,
        mode="linear",
        coordinate_transformation_mode="align_corners" if aligned else "half_pixel",
    )
    return (node,), (constant,)


def resize_scale(length: int, outputs: int) -> np.float32:
    """Returns the smallest float32 scale whose product with ``length`` is at least ``outputs``.

    So floor(length * scale) is ``outputs`` in any precision that an engine computes it in.
    """
    scale = np.float32(outputs / length)
    while float(scale) * length < outputs:
        scale = np.float32(np.nextafter(scale, np.float32(math.inf)))
    return scale
