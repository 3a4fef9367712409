"""3x3 convolutions of many channels as fewer products, for float32 on CPUs.

ONNX Runtime's float convolution is direct: its time is its multiplications. On maps of a few
thousand pixels with hundreds of channels, where segmentation networks spend most of theirs, F(4x4,
3x3) makes a quarter of them, and what is added to it is matrix products too (``winograd_tiles``).
The sums are other ones, so results differ by rounding: by 1e-5 of the largest at most in the tests
of random layers.

The graph on disk stays as it is: factors take four times the space of filters, and GPUs have such
kernels of their own. In memory the factors are not part of the graph either but inputs, given with
each run: ONNX Runtime would copy an initializer several times while it opens a session, and once
for each session.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from serving.engines.winograd_cost import Layer, Plan, choose_plan
from serving.engines.winograd_tiles import (
    PRODUCTS,
    TAPS,
    Stretch,
    tile_stretch,
    transform_filters,
)

# What all factors together may take.
MAX_FACTOR_BYTES = 2**30

Constant: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int64]

log = logging.getLogger("segserve")


@dataclass(frozen=True)
class Rewritten:
    """A graph, and what it needs beside its images with each run: float32 ``[36, C, K]`` each."""

    model: onnx.ModelProto
    factors: Mapping[str, npt.NDArray[np.float32]]


def apply_winograd(model: onnx.ModelProto) -> Rewritten:
    """Returns a copy with each convolution replaced that becomes faster; ``model`` itself where
    none does.

    Left as they are: other sizes of kernel, strides, groups, padding that changes the size, dynamic
    heights and widths, weights that are not float32 initializers, and layers that
    :func:`choose_plan` expects no gain from.
    """
    return replace_convolutions(model, choose_plan)


def replace_convolutions(
    model: onnx.ModelProto, choose: Callable[[Layer], Plan | None]
) -> Rewritten:
    """Returns the same, where ``choose`` says which layers gain, and in which pieces."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    # Shapes cost a copy of all weights: not for graphs in int8 or fp16, which have no such layer.
    if not any(_has_filters(node, weights) for node in model.graph.node):
        return Rewritten(model, {})
    shapes = _read_shapes(model)
    plans: dict[str, tuple[Layer, Plan]] = {}
    room = MAX_FACTOR_BYTES
    for node in model.graph.node:
        layer = _read_layer(node, weights, shapes)
        plan = choose(layer) if layer is not None else None
        if layer is not None and plan is not None and layer.factor_bytes <= room:
            room -= layer.factor_bytes
            plans[node.output[0]] = layer, plan
    if not plans:
        return Rewritten(model, {})
    log.debug("%d convolutions by Winograd's F(4x4, 3x3)", len(plans))
    return _rebuild(model, weights, plans)


def _rebuild(
    model: onnx.ModelProto,
    weights: Mapping[str, TensorProto],
    plans: Mapping[str, tuple[Layer, Plan]],
) -> Rewritten:
    factors: dict[str, npt.NDArray[np.float32]] = {}
    found = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    found.graph.name = model.graph.name
    found.graph.input.extend(model.graph.input)
    found.graph.output.extend(model.graph.output)
    for node in model.graph.node:
        if node.output[0] in plans:
            replacement = _Replacement(found.graph, node, *plans[node.output[0]])
            filters = numpy_helper.to_array(weights[node.input[1]])
            factors[replacement.factors] = transform_filters(filters)
            replacement.add()
        else:
            found.graph.node.append(node)
    used = {name for node in found.graph.node for name in node.input}
    found.graph.initializer.extend(weights[name] for name in weights if name in used)
    for name, values in factors.items():
        found.graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape)
        )
    return Rewritten(found, factors)


class _Replacement:
    """The nodes of one convolution, added to a graph."""

    def __init__(
        self, graph: onnx.GraphProto, node: onnx.NodeProto, layer: Layer, plan: Plan
    ) -> None:
        self._graph, self._node, self._layer, self._plan = graph, node, layer, plan
        self._stem = f"{node.output[0]}_winograd"
        self.factors = f"{self._stem}_factors"
        self._count = 0
        self._constants: dict[bytes, str] = {}

    def add(self) -> None:
        layer, plan, node = self._layer, self._plan, self._node
        photo = self._op("Transpose", node.input[0], perm=[0, 2, 3, 1])  # [N, H, W, C]
        strips = [
            self._strip(photo, top, min(plan.rows, layer.height - top))
            for top in range(0, layer.height, plan.rows)
        ]
        whole = strips[0] if len(strips) == 1 else self._op("Concat", *strips, axis=1)
        if len(node.input) > 2 and node.input[2]:
            whole = self._op("Add", whole, node.input[2])
        self._op("Transpose", whole, result=node.output[0], perm=[0, 3, 1, 2])

    def _strip(self, photo: str, top: int, rows: int) -> str:
        """Rows of the result, ``[N, rows, W, K]``."""
        layer, dilation = self._layer, self._layer.dilation
        tall, wide = tile_stretch(rows, dilation), tile_stretch(self._plan.columns, dilation)
        patches = layer.width // self._plan.columns
        first, behind = max(0, top - dilation), min(layer.height, top + rows + dilation)
        if behind - first < layer.height:
            photo = self._op(
                "Slice", photo, *(self._constant(np.array([n])) for n in (first, behind, 1))
            )
        inside = slice(first - top + dilation, behind - top + dilation)
        given, sums = behind - first, PRODUCTS * wide.tiles * patches
        found = self._enter_columns(photo, wide, patches)
        found = self._reshape(found, -1, given, sums * layer.inputs)
        found = self._op("MatMul", self._constant(_single(tall.enter[:, inside])), found)
        # [N, 6, tall, patches, 6, wide * C] -> [6, 6, N, tall, patches, wide * C]
        found = self._reshape(
            found, -1, PRODUCTS, tall.tiles, patches, PRODUCTS, wide.tiles * layer.inputs
        )
        found = self._op("Transpose", found, perm=[1, 4, 0, 2, 3, 5])
        found = self._reshape(found, PRODUCTS**2, -1, layer.inputs)
        found = self._op("MatMul", found, self.factors)
        found = self._reshape(
            found, PRODUCTS, PRODUCTS, -1, tall.tiles, patches, wide.tiles * layer.outputs
        )
        found = self._op("Transpose", found, perm=[2, 0, 3, 4, 1, 5])
        found = self._reshape(found, -1, PRODUCTS * tall.tiles, sums * layer.outputs)
        found = self._op("MatMul", self._constant(_single(tall.leave)), found)
        found = self._reshape(found, -1, patches, PRODUCTS * wide.tiles, layer.outputs)
        found = self._op("MatMul", self._constant(_single(wide.leave)), found)
        return self._reshape(found, -1, rows, layer.width, layer.outputs)

    def _enter_columns(self, photo: str, wide: Stretch, patches: int) -> str:
        """Sums along each row, ``[N * rows, patches, 6 * wide, C]``."""
        layer, columns = self._layer, self._plan.columns
        given = np.arange(-wide.dilation, columns + wide.dilation)
        places = np.arange(0, layer.width, columns)[:, None] + given
        inside = (places >= 0) & (places < layer.width)
        if patches == 1:
            photo = self._reshape(photo, -1, 1, layer.width, layer.inputs)
            return self._op("MatMul", self._constant(_single(wide.enter[:, inside[0]])), photo)
        taken = self._constant(np.where(inside, places, 0).ravel())
        photo = self._op("Gather", photo, taken, axis=2)
        photo = self._reshape(photo, -1, patches, len(given), layer.inputs)
        return self._op("MatMul", self._constant(_single(wide.enter * inside[:, None])), photo)

    def _op(self, kind: str, *inputs: str, result: str = "", **attributes: object) -> str:
        self._count += 1
        name = f"{self._stem}_{self._count}"
        result = result or name
        self._graph.node.append(
            helper.make_node(kind, list(inputs), [result], name=name, **attributes)
        )
        return result

    def _reshape(self, source: str, *shape: int) -> str:
        return self._op("Reshape", source, self._constant(np.array(shape)))

    def _constant(self, value: Constant) -> str:
        """Returns the name of an initializer with this value; equal ones are kept once."""
        key = str(value.shape).encode() + value.tobytes()
        if key not in self._constants:
            name = f"{self._stem}_constant_{len(self._constants)}"
            self._graph.initializer.append(numpy_helper.from_array(value, name))
            self._constants[key] = name
        return self._constants[key]


def _single(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(matrix, np.float32)


def _has_filters(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """Returns whether it is a convolution with 3x3 filters in float32."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    weight = weights.get(node.input[1])
    return (
        weight is not None
        and weight.data_type == TensorProto.FLOAT
        and tuple(weight.dims[2:]) == (TAPS, TAPS)
    )


def _read_layer(
    node: onnx.NodeProto,
    weights: Mapping[str, TensorProto],
    shapes: Mapping[str, tuple[int, ...]],
) -> Layer | None:
    """Returns the layer of a node; None where Winograd's form does not apply, or a size is
    unknown."""
    if not _has_filters(node, weights):
        return None
    weight, shape = weights[node.input[1]], shapes.get(node.input[0], ())
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    dilation = list(given.get("dilations", [1, 1]))
    known = (
        given.get("group", 1) == 1
        and list(given.get("strides", [1, 1])) == [1, 1]
        and dilation[0] == dilation[1]
        and list(given.get("pads", [0] * 4)) == [dilation[0]] * 4
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and len(shape) == 4
        and min(shape[1:]) > 0
    )
    if not known:
        return None
    return Layer(weight.dims[1], weight.dims[0], shape[2], shape[3], dilation[0])


def _read_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Returns each tensor's shape, 0 for what is not static; without those ONNX cannot infer."""
    try:
        inferred = shape_inference.infer_shapes(model)
    except Exception as error:  # a file beyond 2 GB, or operators that it does not know
        log.debug("no shapes: %s", error)
        return {}
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input)
    }
