"""Measures what this machine can multiply at most, and how much of it a network reaches.

The peak is the fastest of several large products, in ONNX Runtime (its own kernels) and in NumPy
(OpenBLAS, in a process of its own without ``OPENBLAS_CORETYPE``, which may choose slower kernels).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from benchmarks.engines.onnxruntime import open_on_cpu
from benchmarks.timing import time_runs

SIDE = 2048
_MULTIPLYING = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_NUMPY = f"""
import time
import numpy as np
a = np.random.default_rng(0).random(({SIDE}, {SIDE}), np.float32)
a @ a
times = []
for _ in range(5):
    start = time.perf_counter()
    a @ a
    times.append(time.perf_counter() - start)
print(min(times))
"""


@dataclass(frozen=True)
class Peak:
    """The billions of multiplications (with their additions) a second, by way."""

    precision: str
    ways: dict[str, float]

    @property
    def gmacs(self) -> float:
        """Returns the figure of the fastest way."""
        return max(self.ways.values())


def measure_peak(precision: str, threads: int, seconds: float = 2.0) -> Peak:
    """Measures the peak of ``fp32`` or ``int8`` (unsigned by signed, sums in 32 bits)."""
    work = SIDE**3 / 1e9
    product, convolution = _sessions(precision, threads)
    ways = {
        "ONNX Runtime, product": work / _fastest(product, seconds),
        "ONNX Runtime, 3x3 convolution": 9 * work / 8 / _fastest(convolution, seconds),
    }
    if precision == "fp32":
        ways["NumPy, product"] = work / _numpy_seconds(threads)
    return Peak(precision, {name: round(value, 1) for name, value in ways.items()})


def count_gmacs(model: ModelProto) -> float:
    """Returns the billions of multiplications of one image in convolutions and matrix products.

    The float graph is counted as it is: what a rewrite saves is not in it.
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    inferred = shape_inference.infer_shapes(fixed).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type not in _MULTIPLYING:
            continue
        made = math.prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            total += made * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
        else:
            total += made * shapes[node.input[0]][-1]
    return total / 1e9


def _fastest(session: onnxruntime.InferenceSession, seconds: float) -> float:
    (given,) = session.get_inputs()
    kind = np.float32 if given.type == "tensor(float)" else np.uint8
    feed = {given.name: np.random.default_rng(0).integers(0, 200, given.shape).astype(kind)}
    return min(time_runs(lambda: session.run(None, feed), seconds).walls)


def _sessions(
    precision: str, threads: int
) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    """Opens a product of two squares, and a convolution of 512 channels with 9/8 of its work."""
    noise = np.random.default_rng(1)
    channels, rows = 512, SIDE**3 // (8 * 512 * 512) // 64
    is_float = precision == "fp32"
    kind = TensorProto.FLOAT if is_float else TensorProto.UINT8
    weight_type = np.dtype(np.float32 if is_float else np.int8)
    square = noise.integers(-60, 60, (SIDE, SIDE)).astype(weight_type)
    kernel = noise.integers(-60, 60, (channels, channels, 3, 3)).astype(weight_type)
    if is_float:
        product = helper.make_node("MatMul", ["x", "w"], ["y"])
        convolution = helper.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])
    else:
        product = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
        scales = ["x", "s", "z", "k", "s", "wz", "s", "z"]
        convolution = helper.make_node("QLinearConv", scales, ["y"], pads=[1, 1, 1, 1])
    constants = [
        _constant("w", square), _constant("k", kernel), _constant("s", np.array(0.01, np.float32)),
        _constant("z", np.array(0, np.uint8)), _constant("wz", np.array(0, np.int8)),
    ]  # fmt: skip
    result = TensorProto.FLOAT if is_float else TensorProto.INT32
    return (
        _open(product, kind, [SIDE, SIDE], result, constants, threads),
        _open(convolution, kind, [1, channels, rows, 64], kind, constants, threads),
    )


def _constant(name: str, values: npt.NDArray[np.generic]) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True)


def _open(
    node: NodeProto,
    kind: int,
    shape: list[int],
    result: int,
    constants: list[TensorProto],
    threads: int,
) -> onnxruntime.InferenceSession:
    used = set(node.input)
    graph = helper.make_graph(
        [node], "peak",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", result, shape)],
        [constant for constant in constants if constant.name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return open_on_cpu(model, threads)


def _numpy_seconds(threads: int) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    environment |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", _NUMPY], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)
