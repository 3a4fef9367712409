"""Static shapes of every tensor of a graph, and of every parameter, from the image size.

Sizes follow MXNet: pooling ``valid`` is ``1 + floor((x + 2p - k) / s)``, ``full`` takes the
ceiling. The batch is 1 here; it is symbolic in the exported graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from export.errors import InvalidSymbol, UnsupportedOperator
from export.symbol import BATCH_NORMS, Entry, Graph, Node

Shape = tuple[int, ...]

CHANNELS = 3
_ELEMENTWISE = {
    "Activation", "relu", "sigmoid", "tanh", "clip", "LeakyReLU", "Dropout", "identity", "_copy",
    "BlockGrad", "_plus_scalar", "_PlusScalar", "_minus_scalar", "_MinusScalar", "_mul_scalar",
    "_MulScalar", "_div_scalar", "_DivScalar", "softmax", "SoftmaxActivation", "SoftmaxOutput",
}  # fmt: skip
BINARY = {
    "elemwise_add": "Add", "broadcast_add": "Add", "broadcast_plus": "Add", "_Plus": "Add",
    "_plus": "Add", "elemwise_mul": "Mul", "broadcast_mul": "Mul", "_Mul": "Mul", "_mul": "Mul",
    "elemwise_sub": "Sub", "broadcast_sub": "Sub", "_Minus": "Sub", "_minus": "Sub",
}  # fmt: skip


@dataclass(frozen=True)
class GraphShapes:
    """Shapes at one image size: ``tensors`` of operators' first outputs, by node index, and
    ``parameters`` by variable name."""

    tensors: Mapping[int, Shape]
    parameters: Mapping[str, Shape]

    def of(self, entry: Entry) -> Shape:
        """The shape of an entry, (1, C, H, W) for feature maps."""
        return self.tensors[entry.node]


def infer_shapes(graph: Graph, height: int, width: int) -> GraphShapes:
    """Propagates (1, 3, height, width) through the graph.

    Raises UnsupportedOperator naming every operator without a rule, and InvalidSymbol where
    shapes do not fit each other, naming the node.
    """
    unknown = {
        node.op for _, node in graph.operators() if node.op not in _RULES and node.op not in BINARY
    }
    if unknown:
        raise UnsupportedOperator(
            "no conversion for the operators " + ", ".join(sorted(unknown))
            + "; export a network without them"
        )  # fmt: skip
    tensors: dict[int, Shape] = {graph.data_input(): (1, CHANNELS, height, width)}
    parameters: dict[str, Shape] = {}
    for index, node in graph.operators():
        if any(entry.output for entry in node.inputs):
            raise UnsupportedOperator(f"{node.name} reads a second output; only first ones are")
        features = [tensors[e.node] for e in node.inputs if e.node in tensors]
        own = [graph.nodes[e.node].name for e in node.inputs if e.node not in tensors]
        if not features:
            raise InvalidSymbol(f"{node.name} ({node.op}) does not depend on the image")
        tensors[index] = _RULES.get(node.op, _binary)(node, features)
        if min(tensors[index]) < 1:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) would be empty at {height}x{width}: {tensors[index]}"
            )
        shapes = _parameter_shapes(node, features[0])
        if len(shapes) < len(own):
            raise InvalidSymbol(f"{node.name} ({node.op}) reads the unexpected inputs {own}")
        for name, shape in zip(own, shapes, strict=False):
            if parameters.setdefault(name, shape) != shape:
                raise InvalidSymbol(f"{name} is shared as {parameters[name]} and as {shape}")
    return GraphShapes(tensors, parameters)


def pooled_length(length: int, kernel: int, stride: int, pad: int, full: bool) -> int:
    """Output length of a pooling window along one axis."""
    span = length + 2 * pad - kernel
    return 1 + (-(-span // stride) if full else span // stride)


def convolution_geometry(node: Node) -> tuple[Shape, Shape, Shape, Shape]:
    """Kernel, stride, dilation and padding of a 2-D convolution, two integers each."""
    kernel = node.integers("kernel")
    if len(kernel) != 2 or node.text("layout", "NCHW") != "NCHW":
        raise UnsupportedOperator(
            f"{node.name}: only 2-D NCHW convolutions, not kernel {kernel} layout"
            f" {node.text('layout', 'NCHW')}"
        )
    return (
        kernel,
        node.integers("stride", (1, 1)),
        node.integers("dilate", (1, 1)),
        node.integers("pad", (0, 0)),
    )


def _convolution(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    kernel, stride, dilate, pad = convolution_geometry(node)
    groups, filters = node.integer("num_group", 1), node.integer("num_filter", 0)
    if groups < 1 or filters < 1 or channels % groups or filters % groups:
        raise InvalidSymbol(f"{node.name}: {groups} groups for {channels} -> {filters} channels")
    sizes = [
        (lengths[i] + 2 * pad[i] - dilate[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    return (batch, filters, *sizes)


def _pooling(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    if node.flag("global_pool", False):
        return (batch, channels, 1, 1)
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    full = node.text("pooling_convention", "valid") == "full"
    if len(kernel) != 2:
        raise UnsupportedOperator(f"{node.name}: only 2-D pooling, not kernel {kernel}")
    return (
        batch,
        channels,
        *(pooled_length(lengths[i], kernel[i], stride[i], pad[i], full) for i in range(2)),
    )


def _adaptive_pooling(node: Node, features: Sequence[Shape]) -> Shape:
    size = node.integers("output_size", (1,))
    return (*_map(node, features[0])[:2], *(size * 2)[:2])


def _resize(node: Node, features: Sequence[Shape]) -> Shape:
    if node.text("mode", "size") != "size" or "scale_height" in node.attrs:
        raise UnsupportedOperator(f"{node.name}: only resizes to a height and width are known")
    shape = _map(node, features[0])
    return (*shape[:2], node.integer("height", 1), node.integer("width", 1))


def _concat(node: Node, features: Sequence[Shape]) -> Shape:
    axis = node.integer("dim", 1)
    first = features[0]
    for shape in features[1:]:
        if len(shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != axis
        ):
            raise InvalidSymbol(f"{node.name}: cannot concatenate {features} along axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in features), *first[axis + 1 :])


def _binary(node: Node, features: Sequence[Shape]) -> Shape:
    if len(features) != 2 or len(features[0]) != len(features[1]):
        raise InvalidSymbol(f"{node.name} ({node.op}) needs two feature maps, not {features}")
    pairs = list(zip(*features, strict=True))
    broadcast = node.op.startswith("broadcast")
    if any(a != b and not (broadcast and 1 in (a, b)) for a, b in pairs):
        raise InvalidSymbol(
            f"{node.name}: the shapes {features[0]} and {features[1]} differ; was the symbol made"
            " for another size?"
        )
    return tuple(max(pair) for pair in pairs)


def _same(node: Node, features: Sequence[Shape]) -> Shape:
    return features[0]


def _flatten(node: Node, features: Sequence[Shape]) -> Shape:
    batch, *rest = features[0]
    size = 1
    for length in rest:
        size *= length
    return (batch, size)


def _map(node: Node, shape: Shape) -> Shape:
    if len(shape) != 4:
        raise InvalidSymbol(f"{node.name} ({node.op}) needs a feature map, not {shape}")
    return shape


def _parameter_shapes(node: Node, features: Shape) -> list[Shape]:
    if node.op == "Convolution":
        filters = node.integer("num_filter", 0)
        inputs = features[1] // node.integer("num_group", 1)
        weight: Shape = (filters, inputs, *node.integers("kernel"))
        return [weight] if node.flag("no_bias", False) else [weight, (filters,)]
    if node.op in BATCH_NORMS:
        return [(features[1],)] * 4
    if node.op == "SoftmaxOutput":
        return [(features[0], *features[2:])]  # the label, which inference does not read
    if node.op == "LeakyReLU":
        return [(features[1],)]
    return []


_Rule = Callable[[Node, Sequence[Shape]], Shape]
_RULES: dict[str, _Rule] = {
    "Convolution": _convolution,
    "Pooling": _pooling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "_contrib_BilinearResize2D": _resize,
    "Concat": _concat,
    "concat": _concat,
    "Flatten": _flatten,
    "flatten": _flatten,
    **dict.fromkeys(_ELEMENTWISE, _same),
    **dict.fromkeys(BATCH_NORMS, _same),
}
