"""What the conversion of one operator takes and returns, and the nodes that several share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.symbols.conv_arithmetic import Shape
from export.symbols.graph import Node


@dataclass(frozen=True)
class Lowering:
    """ONNX nodes and constants for one operator; ``output`` is the tensor it computes."""

    nodes: tuple[NodeProto, ...]
    output: str
    constants: tuple[TensorProto, ...] = ()


@dataclass(frozen=True)
class LoweringContext:
    """What surrounds an operator: its node under a unique ``name``, its inputs and shapes.

    ``input_shapes`` and ``shape`` are (1, C, H, W); for parameters the shape is their own.
    """

    node: Node
    name: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape


def single(
    context: LoweringContext, op_type: str, inputs: Sequence[str], *constants: TensorProto
) -> Lowering:
    """Returns one ONNX node under the operator's name."""
    node = helper.make_node(op_type, list(inputs), [context.name], name=context.name)
    return Lowering((node,), context.name, constants)


def constant(name: str, values: NDArray[np.float32]) -> TensorProto:
    """Returns a float32 constant."""
    tensor: TensorProto = numpy_helper.from_array(values, name)
    return tensor


def indices(name: str, values: Sequence[int]) -> TensorProto:
    """Returns an int64 constant: shapes, axes, bounds."""
    tensor: TensorProto = numpy_helper.from_array(np.array(values, np.int64), name)
    return tensor


def resize_nodes(
    name: str, source: str, lengths: Sequence[int], outputs: Sequence[int], aligned: bool
) -> tuple[tuple[NodeProto, ...], tuple[TensorProto, ...]]:
    """Returns a Resize of [N, C, *lengths] to [N, C, *outputs]; no nodes where both are equal.

    ``aligned`` is MXNet's ``align_corners``. Scales, because sizes would fix the batch too
    (``axes`` came with opset 18); where corners are aligned they set only the output size.
    """
    if tuple(lengths) == tuple(outputs):
        return (), ()
    factors = [resize_scale(n, out) for n, out in zip(lengths, outputs, strict=True)]
    scales = constant(f"{name}_scales", np.array([1, 1, *factors], np.float32))
    node = helper.make_node(
        "Resize",
        [source, "", scales.name],
        [name],
        name=name,
        mode="linear",
        coordinate_transformation_mode="align_corners" if aligned else "half_pixel",
    )
    return (node,), (scales,)


def resize_scale(length: int, outputs: int) -> np.float32:
    """Returns the smallest float32 scale whose product with ``length`` is at least ``outputs``.

    So floor(length * scale) is ``outputs`` in any precision that an engine computes it in.
    """
    scale = np.float32(outputs / length)
    while float(scale) * length < outputs:
        scale = np.float32(np.nextafter(scale, np.float32(math.inf)))
    return scale
