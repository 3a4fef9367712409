"""What the conversion of one operator takes and returns."""

from __future__ import annotations

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
