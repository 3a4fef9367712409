"""Takes branches that are the same over large areas out of the convolution that joins them.

Pyramid and image-pooling heads concatenate a map with branches that were enlarged from a few
positions, and convolve the whole. ``image_pooling_bias`` and ``factor_pyramid`` compute such a
branch's share on its few positions and add it to the convolution of the rest. Both are exact up to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from export.passes.onnx_graph import (
    OnnxGraph,
    integers,
    is_aligned_resize,
    make_node,
    rewrite_at,
    texts,
)

# Fewer multiplications by at least this factor, or the branch stays.
_MIN_GAIN = 4


@dataclass(frozen=True)
class _Branch:
    """One input of a concatenation that a resize made: its source and channels.

    ``size`` is the source's height and width.
    """

    source: str
    resize: NodeProto
    channels: range
    size: tuple[int, int]


@dataclass(frozen=True)
class _Joined:
    """A convolution that alone reads a concatenation of channels, and alone has its weights.

    ``weight`` is float32 [filters, channels, ky, kx]; the convolution has one group. ``rest`` are
    the inputs of the concatenation that are not among ``branches``, ``kept`` their channels.
    """

    conv: NodeProto
    concat: NodeProto
    weight: NDArray[np.float32]
    branches: tuple[_Branch, ...]
    rest: tuple[str, ...]
    kept: tuple[int, ...]

    def add_share(
        self, graph: OnnxGraph, nodes: Sequence[NodeProto], share: str, what: str
    ) -> None:
        """Lets the convolution read ``rest`` alone, and adds ``share``, which ``nodes`` compute.

        ``what`` names the sum and the convolution's own result.
        """
        conv, name = self.conv, self.conv.name
        graph.set_constant(conv.input[1], np.take(self.weight, self.kept, axis=1))
        if len(self.rest) > 1:
            graph.set_inputs(self.concat, self.rest)
        else:
            graph.set_input(conv, 0, self.rest[0])
        result = conv.output[0]
        graph.set_output(conv, 0, f"{name}_without_{what}")
        add = helper.make_node("Add", [conv.output[0], share], [result], f"{name}_with_{what}")
        graph.insert_after(conv, [*nodes, add])


@rewrite_at("Conv")
def image_pooling_bias(graph: OnnxGraph, conv: NodeProto) -> str | None:
    """Takes image pooling out of the convolution that follows it.

    A branch that is resized from one position is the same everywhere. A convolution without padding
    turns it into one value a filter: a bias of the image, computed on one position and added to the
    convolution of the other branches. DeepLab's pyramid ends so: a fifth of its projection's
    multiplications and of the concatenation goes.
    """
    joined = _read_joined(graph, conv, lambda branch, _: branch.size == (1, 1))
    if isinstance(joined, str):
        return joined
    if any(integers(conv, "pads", (0,))):
        return "it is padded, so the pooled branch is not the same for every window"
    name = conv.name
    nodes = []
    sources = [branch.source for branch in joined.branches]
    pooled = sources[0]
    if len(sources) > 1:
        pooled = f"{name}_pooled"
        nodes.append(make_node("Concat", sources, pooled, axis=1))
    # All taps of a window see the same value.
    taken = [channel for branch in joined.branches for channel in branch.channels]
    summed = np.take(joined.weight, taken, axis=1).sum(axis=(2, 3), keepdims=True)
    graph.set_constant(f"{name}_pooled_weight", summed)
    bias = f"{name}_image_bias"
    nodes.append(make_node("Conv", [pooled, f"{name}_pooled_weight"], bias))
    joined.add_share(graph, nodes, bias, "pooling")
    return None


@rewrite_at("Conv")
def factor_pyramid(graph: OnnxGraph, conv: NodeProto) -> str | None:
    """Takes pyramid pooling's branches out of the convolution that follows it.

    A branch is upsampled from n x n positions, and ``up = A p B^T``. A convolution of it is a sum
    over the kernel's taps of shifted ``up``, and a shift with zero padding only moves rows of ``A``
    and ``B``: so each tap is a product on the n x n positions, and the moved matrices then
    interpolate all taps at once. The branches are half of the channels that PSPNet's and ICNet's
    pyramid convolution reads; what replaces them costs hardly anything.
    """
    joined = _read_joined(graph, conv, _is_worth_factoring)
    if isinstance(joined, str):
        return joined
    nodes = _pyramid_nodes(graph, joined)
    joined.add_share(graph, nodes, f"{conv.name}_pyramid", "pyramid")
    return None


def _is_worth_factoring(branch: _Branch, output: tuple[int, int]) -> bool:
    cheaper = _MIN_GAIN * branch.size[0] * branch.size[1] <= output[0] * output[1]
    return cheaper and is_aligned_resize(branch.resize)


def _read_joined(
    graph: OnnxGraph, conv: NodeProto, wanted: Callable[[_Branch, tuple[int, int]], bool]
) -> _Joined | str:
    """Returns a convolution of a concatenation with branches that are ``wanted``, or why it is
    none.

    ``wanted`` is called with a branch, and height and width of the convolution's output.
    """
    concat = graph.producer(conv.input[0])
    if concat is None or concat.op_type != "Concat" or integers(concat, "axis", (0,)) != (1,):
        return "it does not read a concatenation of channels"
    if graph.reader(concat.output[0]) is None:
        return f"{concat.name} has other readers"
    weight = graph.constant(conv.input[1])
    if weight is None or graph.reader(conv.input[1]) is None:
        return "its weights are computed, or others share them"
    # Padding that is not written out as numbers would be taken for none.
    if texts(conv).get("auto_pad", "NOTSET") != "NOTSET" or integers(conv, "group", (1,)) != (1,):
        return "it has automatic padding or several groups"
    resizes = [(name, graph.producer(name)) for name in concat.input]
    sources = {
        name: node for name, node in resizes if node is not None and node.op_type == "Resize"
    }
    tensors = [*concat.input, concat.output[0], conv.output[0]]
    tensors += [resize.input[0] for resize in sources.values()]
    shapes = {name: graph.shape(name) for name in tensors}
    if not all(len(shape) == 4 and min(shape[1:]) > 0 for shape in shapes.values()):
        return "the sizes of what it reads are not all known"
    branches: list[_Branch] = []
    rest: list[str] = []
    kept: list[int] = []
    start = 0
    output = shapes[conv.output[0]]
    for name in concat.input:
        channels = range(start, start + shapes[name][1])
        start = channels.stop
        if name in sources:
            source = sources[name].input[0]
            branch = _Branch(
                source, sources[name], channels, (shapes[source][2], shapes[source][3])
            )
            if wanted(branch, (output[2], output[3])):
                branches.append(branch)
                continue
        rest.append(name)
        kept.extend(channels)
    if not branches or not rest:
        return "no branch can be taken out" if not branches else "nothing but such branches is read"
    return _Joined(conv, concat, weight, tuple(branches), tuple(rest), tuple(kept))


def _pyramid_nodes(graph: OnnxGraph, joined: _Joined) -> list[NodeProto]:
    """Returns the branches' share of the convolution's output, as the tensor ``<conv>_pyramid``."""
    conv, weight = joined.conv, joined.weight
    size = graph.shape(joined.concat.output[0])[2:]
    filters, _, taps_y, taps_x = weight.shape
    strides = integers(conv, "strides", (1, 1))
    dilations = integers(conv, "dilations", (1, 1))
    pads = integers(conv, "pads", (0, 0, 0, 0))
    nodes, rows_done, columns = [], [], []
    for number, branch in enumerate(joined.branches):
        prefix = f"{conv.name}_pyramid{number}"
        height, width = branch.size
        part = weight[:, branch.channels.start : branch.channels.stop]
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
        moved = f"{prefix}_taps_moved"
        nodes += [
            make_node("Conv", [branch.source, f"{prefix}_weight"], f"{prefix}_taps"),
            make_node("Reshape", [f"{prefix}_taps", f"{prefix}_split"], f"{prefix}_taps_split"),
            make_node("Transpose", [f"{prefix}_taps_split"], moved, perm=[0, 1, 2, 4, 3, 5]),
            make_node("Reshape", [moved, f"{prefix}_merged"], f"{prefix}_taps_merged"),
            make_node("MatMul", [f"{prefix}_rows", f"{prefix}_taps_merged"], f"{prefix}_rows_done"),
        ]
        rows_done.append(f"{prefix}_rows_done")
    # One product for the columns of all branches: their sum is a longer inner axis.
    result, rows = f"{conv.name}_pyramid", f"{conv.name}_pyramid_rows"
    graph.set_constant(f"{result}_columns", np.concatenate(columns))
    nodes.append(make_node("Concat", rows_done, rows, axis=3))
    nodes.append(make_node("MatMul", [rows, f"{result}_columns"], result))
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
