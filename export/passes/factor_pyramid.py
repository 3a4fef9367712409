"""Takes pyramid pooling's branches out of the convolution that follows it. Exact up to rounding.

A branch is upsampled from n x n positions, and ``up = A p B^T``. A convolution of it is a sum over
the kernel's taps of shifted ``up``, and a shift with zero padding only moves rows of ``A`` and
``B``: so each tap is a product on the n x n positions, and the moved matrices then interpolate
all taps at once. The branches are half of the channels that PSPNet's and ICNet's pyramid
convolution reads; what replaces them costs hardly anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from export.passes.concatenations import JoinedConvolution, Shapes, rewrite_concatenations
from export.passes.onnx_graph import OnnxGraph, integers

# Fewer multiplications by at least this factor, or the branch stays.
_MIN_GAIN = 4


@dataclass(frozen=True)
class _Branch:
    """One resized input of the concatenation: its source, channels and size before."""

    source: str
    channels: tuple[int, int]
    size: tuple[int, int]


def factor_pyramid(model: ModelProto) -> int:
    """Rewrites in place each convolution of a concatenation with such branches; returns how many.

    The convolution keeps the other inputs; the branches' share is added to its output.
    """
    return rewrite_concatenations(model, _factor)


def _factor(graph: OnnxGraph, joined: JoinedConvolution, shapes: Shapes) -> bool:
    conv, concat = joined.conv, joined.concat
    size, output = shapes[concat.output[0]][2:], shapes[conv.output[0]][2:]
    branches: list[_Branch] = []
    rest: list[str] = []
    kept: list[int] = []
    start = 0
    for name in concat.input:
        end = start + shapes[name][1]
        resize = graph.producer(name)
        if resize is not None and _is_aligned_resize(resize):
            source = resize.input[0]
            branch = _Branch(source, (start, end), (shapes[source][2], shapes[source][3]))
            if _MIN_GAIN * branch.size[0] * branch.size[1] <= output[0] * output[1]:
                branches.append(branch)
                start = end
                continue
        rest.append(name)
        kept.extend(range(start, end))
        start = end
    if not branches or not rest:
        return False
    name, result = conv.name, conv.output[0]
    nodes = _branch_nodes(graph, conv, joined.weight, branches, (size[0], size[1]))
    joined.keep(graph, rest, kept)
    conv.output[0] = f"{name}_without_pyramid"
    add = helper.make_node(
        "Add", [conv.output[0], f"{name}_pyramid"], [result], name=f"{name}_with_pyramid"
    )
    graph.insert_after(conv, [*nodes, add])
    graph.drop_dead()
    return True


def _branch_nodes(
    graph: OnnxGraph,
    conv: NodeProto,
    weight: NDArray[np.float32],
    branches: list[_Branch],
    size: tuple[int, int],
) -> list[NodeProto]:
    """Returns the branches' share of the convolution's output, as the tensor ``<conv>_pyramid``."""
    filters, _, taps_y, taps_x = weight.shape
    strides = integers(conv, "strides", (1, 1))
    dilations = integers(conv, "dilations", (1, 1))
    pads = integers(conv, "pads", (0, 0, 0, 0))
    nodes, rows_done, columns = [], [], []
    for number, branch in enumerate(branches):
        prefix = f"{conv.name}_pyramid{number}"
        height, width = branch.size
        part = weight[:, branch.channels[0] : branch.channels[1]]
        # [F, C, ky, kx] -> a 1x1 convolution with the outputs (F, ky, kx)
        taps = part.transpose(0, 2, 3, 1).reshape(filters * taps_y * taps_x, -1, 1, 1)
        graph.set_constant(f"{prefix}_weight", taps)
        split = [0, filters, taps_y, taps_x, height, width]
        merged = [0, filters, taps_y * height, taps_x * width]
        graph.set_constant(f"{prefix}_split", np.array(split, np.int64))
        graph.set_constant(f"{prefix}_merged", np.array(merged, np.int64))
        row_matrix = _shifted(height, size[0], taps_y, strides[0], dilations[0], pads[0], pads[2])
        graph.set_constant(f"{prefix}_rows", row_matrix)
        columns.append(
            _shifted(width, size[1], taps_x, strides[1], dilations[1], pads[1], pads[3]).T
        )
        steps: list[tuple[str, list[str], str]] = [
            ("Conv", [branch.source, f"{prefix}_weight"], f"{prefix}_taps"),
            ("Reshape", [f"{prefix}_taps", f"{prefix}_split"], f"{prefix}_taps_split"),
            ("Transpose", [f"{prefix}_taps_split"], f"{prefix}_taps_moved"),
            ("Reshape", [f"{prefix}_taps_moved", f"{prefix}_merged"], f"{prefix}_taps_merged"),
            ("MatMul", [f"{prefix}_rows", f"{prefix}_taps_merged"], f"{prefix}_rows_done"),
        ]
        nodes += [helper.make_node(op, inputs, [out], name=out) for op, inputs, out in steps]
        nodes[-3].attribute.append(helper.make_attribute("perm", [0, 1, 2, 4, 3, 5]))
        rows_done.append(f"{prefix}_rows_done")
    # One product for the columns of all branches: their sum is a longer inner axis.
    result, joined = f"{conv.name}_pyramid", f"{conv.name}_pyramid_rows"
    graph.set_constant(f"{result}_columns", np.concatenate(columns))
    nodes.append(helper.make_node("Concat", rows_done, [joined], name=joined, axis=3))
    nodes.append(helper.make_node("MatMul", [joined, f"{result}_columns"], [result], name=result))
    return nodes


def _shifted(
    length: int, size: int, taps: int, stride: int, dilation: int, before: int, after: int
) -> NDArray[np.float32]:
    """Returns float32 [outputs, taps * length]: for each tap the aligned-corners interpolation
    matrix, read at the positions that the tap sees; zero where it sees the padding."""
    matrix = np.zeros((size, length))
    positions = np.arange(size) * ((length - 1) / (size - 1) if size > 1 else 0.0)
    low = positions.astype(int)
    high = np.minimum(low + 1, length - 1)
    np.add.at(matrix, (np.arange(size), low), 1 - (positions - low))
    np.add.at(matrix, (np.arange(size), high), positions - low)
    padded = np.pad(matrix, ((before, after), (0, 0)))
    outputs = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
    shifted = [padded[np.arange(outputs) * stride + tap * dilation] for tap in range(taps)]
    joined: NDArray[np.float32] = np.concatenate(shifted, axis=1).astype(np.float32)
    return joined


def _is_aligned_resize(node: NodeProto) -> bool:
    texts = {a.name: a.s for a in node.attribute}
    return (
        node.op_type == "Resize"
        and texts.get("mode") == b"linear"
        and texts.get("coordinate_transformation_mode") == b"align_corners"
    )
