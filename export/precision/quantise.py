"""int8 by QDQ nodes, with the ranges of a network's tensors on real images.

``QuantizeLinear`` and ``DequantizeLinear`` stand around what an engine may run in 8 bits.
Per-channel weights; inputs, outputs and their types stay those of the contract. Ranges depend on
the float graph, the images and the method alone, so they are measured once and shared by every
recipe that is tried. Source of the format: ONNX Runtime, "Quantize ONNX models".
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, checker

from export.passes.contract import IMAGE, graph_ends
from export.passes.onnx_graph import OnnxGraph, copy_model, infer_shapes
from export.precision.first_layers import centre_bytes, pack_columns, read_bytes

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData


Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

# ONNX Runtime's own default; Relu makes most values 0, so less cuts off what matters.
PERCENTILE = 99.999


def usable_methods(model: ModelProto) -> tuple[Method, ...]:
    """Returns the methods for which memory suffices: histograms need all tensors of one image at
    once, and may take half of the machine's memory; ``minmax`` always fits."""
    shapes = infer_shapes(model)
    made = {name for node in model.graph.node for name in node.output}
    numbers = sum(math.prod(max(1, n) for n in shapes[name]) for name in made & shapes.keys())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return METHODS if 4 * numbers < memory / 2 else ("minmax",)


class ImageReader:
    """Feeds uint8 [H, W, 3] images to ONNX Runtime's calibrators, one a run.

    Source of the interface: ``onnxruntime.quantization.CalibrationDataReader``.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Returns the next run's inputs, ``image`` uint8 [1, H, W, 3]; None at the end."""
        image = next(self._images, None)
        return None if image is None else {IMAGE: image[None]}


def calibrate(
    model: ModelProto,
    images: Sequence[NDArray[np.uint8]],
    method: Method,
    on_image: Callable[[], None] = lambda: None,
) -> TensorsData:
    """Returns the range of every float tensor over the images.

    Args:
        model: a float32 graph of the contract; it stays as it is.
        images: uint8 [H, W, 3] each, of the model's size.
        method: ``minmax`` keeps the extremes, ``percentile`` cuts off the rarest values,
            ``entropy`` chooses the cut that changes the histogram least.
        on_image: called after each image.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options: dict[str, float] = {"percentile": PERCENTILE} if method == "percentile" else {}
    # The calibrators print as they go.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        source = Path(folder) / "model.onnx"
        source.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(
            source,
            None,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=methods[method],
            extra_options={**options, "symmetric": False},
        )
        for image in images:  # one by one: a calibrator holds all tensors of what it is given
            calibrator.collect_data(ImageReader([image]))
            on_image()
        ranges: TensorsData = calibrator.compute_data()
        return ranges


Activation = Literal["uint8", "int8"]
# What runs between convolutions and exists in 8 bits: without them each convolution would convert
# to float and back. Bilinear resizes and pooling by matrices stay in float: they average.
OPERATORS = ("Conv", "Relu", "Add", "Concat", "MaxPool")


@dataclass(frozen=True)
class Recipe:
    """A way to make int8: its options.

    Attributes:
        method: how the range of a tensor is chosen.
        activation: the type of the tensors between layers.
        symmetric: zero points in the middle of the type's range.
        first_float: leave the convolutions that read the image in float; else they read its bytes
            (``export.precision.first_layers``).
        four_columns: those that read bytes read four columns at once
            (the same module); the result is the same.
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
    """Returns True where the CPU adds products of 8 bits in 32; False also where that is
    unknown."""
    try:
        text = cpuinfo.read_text("utf-8", "replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _VNNI.isdisjoint(flags.split())
