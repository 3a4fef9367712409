"""Defines what the conversion of an operator takes and returns, and the nodes that several
share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.symbols.conv_arithmetic import Shape
from export.symbols.graph import Node

# From here on a reduction's axes are an input.
_AXES_AS_INPUT = 18


@dataclass(frozen=True)
class Lowering:
    """ONNX nodes and constants for one operator.

    Attributes:
        output: the tensor that it computes; ``later`` are its further ones.
    """

    nodes: tuple[NodeProto, ...]
    output: str
    constants: tuple[TensorProto, ...] = ()
    later: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoweringContext:
    """The surroundings of an operator: its node under a unique ``name``, its inputs and shapes.

    Attributes:
        input_shapes: for one image, (1, C, H, W) of maps; of parameters their own.
        shape: of the first output; ``shapes`` are those of all.
        open_shapes: of the outputs, with -1 where a length depends on the batch;
            ``open_inputs`` are those of the inputs.
    """

    node: Node
    name: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    shapes: tuple[Shape, ...]
    open_inputs: tuple[Shape, ...] = ()
    open_shapes: tuple[Shape, ...] = ()
    opset: int = 17

    @property
    def shape(self) -> Shape:
        """Returns the shape of the first output, for one image."""
        return self.shapes[0]


@dataclass
class Nodes:
    """Adds ONNX nodes and constants under an operator's name.

    The last node's output becomes the operator's: :meth:`end` gives it the name.
    """

    context: LoweringContext
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, op: str, inputs: Sequence[str], part: str = "", **attributes: Any) -> str:
        """Returns the output of a new node; ``part`` names it within the operator."""
        used = {node.name for node in self.nodes}
        stem = f"{self.context.name}/{part or op.lower()}"
        name, number = stem, 1
        while name in used:
            number += 1
            name = f"{stem}_{number}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def number(self, value: float) -> str:
        """Returns a scalar constant."""
        return self._keep(np.array(value, np.float32), "number")

    def values(self, array: NDArray[np.generic], part: str) -> str:
        """Returns a constant of float32, int64 or truth values."""
        return self._keep(array, part)

    def integers(self, values: Sequence[int], part: str = "indices") -> str:
        """Returns an int64 constant: shapes, axes, bounds."""
        return self._keep(np.array(values, np.int64), part)

    def reshape(self, source: str, shape: Sequence[int], part: str = "") -> str:
        """Returns the tensor in another shape, in which one length may be -1."""
        return self.add("Reshape", [source, self.integers(shape, "shape")], part)

    def reduce(self, kind: str, source: str, axes: Sequence[int], kept: bool) -> str:
        """Returns ``ReduceMean`` or its like over ``axes``."""
        op, keepdims = f"Reduce{kind}", int(kept)
        if kind == "Sum" or self.context.opset >= _AXES_AS_INPUT:
            return self.add(op, [source, self.integers(axes, "axes")], keepdims=keepdims)
        return self.add(op, [source], axes=list(axes), keepdims=keepdims)

    def end(self, output: str) -> Lowering:
        """Returns all of it as the operator's, whose one output is ``output``."""
        if not self.nodes or self.nodes[-1].output[0] != output:
            return Lowering(tuple(self.nodes), output, tuple(self.constants.values()))
        last = self.nodes[-1]
        last.output[0] = last.name = self.context.name
        return Lowering(tuple(self.nodes), self.context.name, tuple(self.constants.values()))

    def _keep(self, array: NDArray[np.generic], part: str) -> str:
        stem = f"{self.context.name}/{part}"
        name, number = stem, 1
        tensor = numpy_helper.from_array(array, name)
        while name in self.constants:
            known = self.constants[name]
            if (known.raw_data, known.dims, known.data_type) == (
                tensor.raw_data, tensor.dims, tensor.data_type
            ):  # fmt: skip
                return name
            number += 1
            name = f"{stem}_{number}"
        tensor.name = name
        self.constants[name] = tensor
        return name


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
