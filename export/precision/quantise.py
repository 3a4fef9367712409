"""int8 by QDQ nodes: ``QuantizeLinear`` and ``DequantizeLinear`` around what an engine may run in
8 bits. Per-channel weights; inputs, outputs and their types stay those of the contract.

Source of the format: ONNX Runtime, "Quantize ONNX models".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from onnx import ModelProto, checker

from export.passes.contract import graph_ends
from export.passes.onnx_graph import OnnxGraph, copy_model
from export.precision.calibration import Method
from export.precision.quantise_columns import pack_columns
from export.precision.quantise_image import centre_bytes, read_bytes

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData


Activation = Literal["uint8", "int8"]
# What runs between convolutions and exists in 8 bits: without them each convolution would convert
# to float and back. Bilinear resizes and pooling by matrices stay in float: they average.
OPERATORS = ("Conv", "Relu", "Add", "Concat", "MaxPool")


@dataclass(frozen=True)
class Recipe:
    """The knobs of int8.

    Attributes:
        method: how the range of a tensor is chosen.
        activation: the type of the tensors between layers.
        symmetric: zero points in the middle of the type's range.
        first_float: leave the convolutions that read the image in float; else they read its bytes
            (``export.precision.quantise_image``).
        four_columns: those that read bytes read four columns at once
            (``export.precision.quantise_columns``); the result is the same.
        last_float: leave the convolutions that make the logits in float.
        float_layers: names of further convolutions to leave in float.
        reduce_range: weights in 7 bits. CPUs without VNNI add pairs of products in 16 bits, which
            can saturate with 8, silently. Costs a little accuracy where nothing saturates.
        operators: the operator types to quantise.
    """

    method: Method = "minmax"
    activation: Activation = "uint8"
    symmetric: bool = False
    first_float: bool = False
    four_columns: bool = True
    last_float: bool = True
    float_layers: tuple[str, ...] = ()
    reduce_range: bool = True
    operators: tuple[str, ...] = OPERATORS

    def __str__(self) -> str:
        kept = ["first"] * self.first_float + ["last"] * self.last_float
        kept += [f"{len(self.float_layers)} more"] if self.float_layers else []
        return (
            f"{self.method}, {self.activation}{' symmetric' if self.symmetric else ''}"
            f" activations, {7 if self.reduce_range else 8}-bit weights a channel,"
            f" in float: {' + '.join(kept) or 'no layer'}"
        )


def quantise(model: ModelProto, ranges: TensorsData, recipe: Recipe) -> ModelProto:
    """Returns a quantised copy of a float32 graph of the contract whose batch norms are folded.

    ``ranges`` are those of the same graph by ``recipe.method``. Nodes must have names.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = copy_model(model)
    left = float_nodes(model, recipe)
    # Symmetric ranges would move the zero point, which is the image's mean.
    takes_bytes = recipe.activation == "uint8" and not recipe.symmetric
    bytes_fit = takes_bytes and left.isdisjoint(graph_ends(model).first)
    image = centre_bytes(copy) if bytes_fit else None
    if image is not None:
        ranges = _with_ranges(ranges, image.ranges)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=recipe.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if recipe.activation == "uint8" else QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=sorted(left),
        op_types_to_quantize=list(recipe.operators),
        extra_options={"ActivationSymmetric": recipe.symmetric},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised: ModelProto = quantizer.model.model
    quantised.ir_version = model.ir_version
    quantised.producer_name = model.producer_name
    quantised.producer_version = model.producer_version
    del quantised.graph.value_info[:]
    del quantised.opset_import[:]
    quantised.opset_import.extend(model.opset_import)
    if image is not None:
        read_bytes(quantised, image)
        if recipe.four_columns:
            pack_columns(quantised, image)
    OnnxGraph(quantised).drop_dead()
    checker.check_model(quantised)
    return quantised


def _with_ranges(ranges: TensorsData, others: Mapping[str, tuple[float, float]]) -> TensorsData:
    """Returns ``ranges`` with some others instead, or added."""
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    values = dict(ranges.items())
    for name, bounds in others.items():
        low, high = (np.array(bound, np.float32) for bound in bounds)
        values[name] = TensorData(lowest=low, highest=high)
    return TensorsData(ranges.calibration_method, values)


def convolutions(model: ModelProto) -> list[str]:
    """Returns the names of the layers that int8 makes faster, in the graph's order."""
    return [node.name for node in model.graph.node if node.op_type == "Conv"]


def float_nodes(model: ModelProto, recipe: Recipe) -> set[str]:
    """Returns the names of the nodes that the recipe leaves in float."""
    ends = graph_ends(model)
    nodes = {*ends.outside, *recipe.float_layers}
    if recipe.first_float:
        nodes |= ends.first
    if recipe.last_float:
        nodes |= ends.last
    return nodes


_VNNI = {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True where the CPU adds products of 8 bits in 32; False also where that is not known."""
    try:
        text = cpuinfo.read_text("utf-8", "replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _VNNI.isdisjoint(flags.split())
