"""Small segmentation graphs in the forms that PaddleSeg's and MMSegmentation's exporters write.

Node for node what these tools emit around a network of two strided convolutions, image pooling and
a classifier at 1/4: how sizes are computed, which inputs and attributes a ``Resize`` has, how the
network ends. Sources: Paddle2ONNX ``mapper/nn/interpolate.cc``, ``mapper/nn/shape.cc``,
``mapper/tensor/argmax.cc``; PaddleSeg ``tools/export.py`` (``--output_op``); mmdeploy
``codebase/mmseg/models/segmentors/encoder_decoder.py`` and ``configs/mmseg``; PyTorch's
``symbolic_opset11.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, save

CLASSES = 5
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


class OnnxWriter:
    """Nodes and weights in the order they are added; each node is named after its output."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(4)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: object, kind: npt.DTypeLike = np.int64) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(values, kind)))

    def weight(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        name = f"weight.{len(self.weights)}"
        values = self._random.normal(shift, scale, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def positive(self, length: int) -> str:
        name = f"weight.{len(self.weights)}"
        values = self._random.uniform(0.5, 2, length).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def unsqueeze(self, tensor: str) -> str:
        if self.opset < 13:
            return self.op("Unsqueeze", tensor, axes=[0])
        return self.op("Unsqueeze", tensor, self.constant([0]))

    def slice(self, tensor: str, start: int, end: int) -> str:
        bounds = (self.constant([value]) for value in (start, end, 0))
        return self.op("Slice", tensor, *bounds)

    def softmax(self, tensor: str) -> str:
        """Over the classes; before opset 13 both tools move them to the end."""
        if self.opset >= 13:
            return self.op("Softmax", tensor, axis=1)
        there = self.op("Transpose", tensor, perm=[0, 3, 2, 1])
        return self.op("Transpose", self.op("Softmax", there, axis=3), perm=[0, 3, 2, 1])

    def conv(self, tensor: str, inner: int, filters: int, kernel: int = 3, stride: int = 1) -> str:
        weight = self.weight(filters, inner, kernel, kernel, scale=(2 / inner) ** 0.5 / kernel)
        found = self.op(
            "Conv", tensor, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, dilations=[1, 1], group=1,
        )  # fmt: skip
        norm = [self.positive(filters), self.weight(filters, scale=0.2),
                self.weight(filters, scale=0.2), self.positive(filters)]  # fmt: skip
        return self.op(
            "Relu", self.op("BatchNormalization", found, *norm, epsilon=1e-5, momentum=0.9)
        )

    def logits(self, image: str, resize_like: Callable[[str, str], str]) -> str:
        """Scores at 1/4; ``resize_like(x, y)`` is how the tool resizes x to y's size."""
        features = self.conv(self.conv(image, 3, 8, stride=2), 8, 16, stride=2)
        pooled = self.conv(self.op("GlobalAveragePool", features), 16, 4, kernel=1)
        joined = self.op("Concat", features, resize_like(pooled, features), axis=1)
        weight, bias = self.weight(CLASSES, 20, 1, 1, scale=1.5), self.weight(CLASSES)
        return self.op("Conv", joined, weight, bias, kernel_shape=[1, 1])

    def model(self, image: ValueInfoProto, output: ValueInfoProto, last: str) -> ModelProto:
        self.nodes[-1].output[0] = output.name
        assert self.nodes[-1].name == last, "the last node gives the output"
        graph = helper.make_graph(self.nodes, "graph", [image], [output], self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=7
        )


def write_paddleseg(
    path: Path,
    *,
    output_op: str = "argmax",
    coordinates: str = "half_pixel",
    opset: int = 11,
    label_type: int = INT32,
    separate_sizes: bool = False,
) -> Path:
    """PaddleSeg's ``export.py`` and Paddle2ONNX: N, H and W dynamic.

    ``output_op``: argmax, softmax or none. ``coordinates``: those of the last resize.
    ``separate_sizes``: height and width as two scalars, as ``F.interpolate(x, [h, w])`` gives.
    """
    w = OnnxWriter(opset)

    def resize(tensor: str, like: str, mode: str) -> str:
        shape = w.op("Cast", w.op("Shape", like), to=INT32)
        if separate_sizes:
            parts = []
            for axis in (2, 3):
                one = w.op("Reshape", w.slice(shape, axis, axis + 1), w.constant([1]))
                parts.append(w.op("Cast", one, to=INT64))
            wanted = w.op("Concat", *parts, axis=0)
        else:
            wanted = w.op("Cast", w.slice(shape, 2, 4), to=INT64)
        kept = w.slice(w.op("Shape", tensor), 0, 2)
        sizes = w.op("Concat", kept, wanted, axis=0)
        roi, scales = w.constant([1.0] * 8, np.float32), w.constant([], np.float32)
        return w.op(
            "Resize", tensor, roi, scales, sizes, mode="linear",
            coordinate_transformation_mode=mode,
        )  # fmt: skip

    logits = w.logits("x", lambda tensor, like: resize(tensor, like, "half_pixel"))
    last = resize(logits, "x", coordinates)
    kind, shape = FLOAT, ["N", CLASSES, "H", "W"]
    if output_op == "softmax":
        last = w.softmax(last)
    elif output_op == "argmax":
        last, kind, shape = w.op("ArgMax", last, axis=1, keepdims=0), INT64, ["N", "H", "W"]
        if label_type != INT64:
            last, kind = w.op("Cast", last, to=label_type), label_type
    output = helper.make_tensor_value_info("save_infer_model/scale_0.tmp_0", kind, shape)
    image = helper.make_tensor_value_info("x", FLOAT, ["N", 3, "H", "W"])
    save(w.model(image, output, last), path)
    return path


def write_mmdeploy(
    path: Path,
    *,
    ending: str = "argmax",
    aligned: bool = False,
    opset: int = 11,
    static: tuple[int, int] | None = None,
) -> Path:
    """MMSegmentation through mmdeploy's ONNX Runtime backend.

    ``ending``: argmax ([N, 1, H, W] int64), softmax (``with_argmax=False``), or sigmoid: one
    channel of the two classes, compared with 0.3 and cast to float. ``static``: height and width.
    """
    w = OnnxWriter(opset)

    def resize(tensor: str, like: str, mode: str) -> str:
        if static is None:
            parts = []
            for axis in (2, 3):
                shape = w.op("Shape", like)
                length = w.op("Gather", shape, w.constant(axis), axis=0)
                parts.append(w.unsqueeze(length))
            wanted = w.op("Cast", w.op("Concat", *parts, axis=0), to=INT64)
        else:
            quarter = 1 if like == "input" else 4
            wanted = w.constant([-(-length // quarter) for length in static])
        kept = w.slice(w.op("Shape", tensor), 0, 2)
        sizes = w.op("Concat", kept, wanted, axis=0)
        # Before opset 13 region and scales were no optional inputs.
        empty = [w.constant([], np.float32) if opset < 13 else "" for _ in range(2)]
        return w.op(
            "Resize", tensor, *empty, sizes, mode="linear", nearest_mode="floor",
            coordinate_transformation_mode=mode, cubic_coeff_a=-0.75,
        )  # fmt: skip

    mode = "align_corners" if aligned else "pytorch_half_pixel"
    last = w.logits("input", lambda tensor, like: resize(tensor, like, mode))
    if ending == "sigmoid":
        difference = w.constant(np.reshape([1, -1, 0, 0, 0], (1, CLASSES, 1, 1)), np.float32)
        last = w.op("Conv", last, difference, kernel_shape=[1, 1])
    last = resize(last, "input", mode)
    size = static or ("height", "width")
    batch = "batch" if static is None else 1
    kind, channels = FLOAT, CLASSES
    if ending == "sigmoid":
        above = w.op("Greater", w.op("Sigmoid", last), w.constant(0.3, np.float32))
        last, channels = w.op("Cast", above, to=FLOAT), 1
    else:
        last = w.softmax(last)
        if ending == "argmax":
            first = {} if opset < 12 else {"select_last_index": 0}
            last = w.op("ArgMax", last, axis=1, keepdims=1, **first)
            kind, channels = INT64, 1
    output = helper.make_tensor_value_info("output", kind, [batch, channels, *size])
    image = helper.make_tensor_value_info("input", FLOAT, [batch, 3, *size])
    save(w.model(image, output, last), path)
    return path
