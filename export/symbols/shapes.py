"""Static shapes of every tensor of a graph, and of every parameter, at one image size or another.

The batch is 1 here; it is symbolic in the exported graph. The rules, one an operator, are in
``shape_rules``.

A hybridized network is built for one size, which is stored only in its resizes: each goes to a
whole fraction of the image (ICNet: 1/2 to 1/32). ``retarget`` reads the fractions off the symbol,
whose first head is resized to the image itself, and applies them to the new size. The result
equals a symbol generated at that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from export.errors import IllegalSize, InvalidSymbol, UnsupportedOperator
from export.symbols.conv_arithmetic import Shape, convolution_arithmetic
from export.symbols.graph import Entry, Graph, Node
from export.symbols.shape_rules import LABELLED, RULES, SOFTMAXES, parameter_shapes

__all__ = ["GraphShapes", "Shape", "convolution_arithmetic", "infer_shapes"]

CHANNELS = 3
# Of one tensor, as a file may ask for any; 2,048 channels of 1024x2048 have half as many.
MAX_ELEMENTS = 1 << 33
# Of one map: 8192x8192.
MAX_PIXELS = 1 << 26
# Of all parameters together: 2 GiB of float32, more than an ONNX file can hold.
MAX_PARAMETERS = 1 << 29


@dataclass(frozen=True)
class GraphShapes:
    """The shapes at one image size: ``tensors`` of operators' first outputs, by node index, and
    ``parameters`` by variable name."""

    tensors: Mapping[int, Shape]
    parameters: Mapping[str, Shape]

    def of(self, entry: Entry) -> Shape:
        """Returns the shape of an entry, (1, C, H, W) for feature maps."""
        return self.tensors[entry.node]


def infer_shapes(graph: Graph, height: int, width: int) -> GraphShapes:
    """Propagates (1, 3, height, width) through the graph, once a graph and size.

    Raises UnsupportedOperator naming every operator without a rule, and InvalidSymbol where
    shapes do not fit each other, naming the node.
    """
    return graph.derive(("shapes", height, width), lambda: _propagate(graph, height, width))


def _propagate(graph: Graph, height: int, width: int) -> GraphShapes:
    unknown = {node.op for _, node in graph.operators() if node.op not in RULES}
    if unknown:
        raise UnsupportedOperator(
            "no conversion for the operators " + ", ".join(sorted(unknown))
            + "; export a network without them"
        )  # fmt: skip
    tensors: dict[int, Shape] = {graph.data_input(): (1, CHANNELS, height, width)}
    parameters: dict[str, Shape] = {}
    if any(head.output for head in graph.heads):
        raise UnsupportedOperator(
            "an output of the network is a node's second one: expected first ones"
        )
    for index, node in graph.operators():
        if any(entry.output for entry in node.inputs):
            raise UnsupportedOperator(
                f"{node.name} reads a node's second output: expected first ones"
            )
        if node.op in LABELLED:
            # The label: a variable that inference does not read, no parameter.
            for entry in node.inputs[1:]:
                data = tensors.get(node.inputs[0].node, ())
                tensors.setdefault(entry.node, (*data[:1], *data[2:]))
        features = [tensors[e.node] for e in node.inputs if e.node in tensors]
        own = [graph.nodes[e.node].name for e in node.inputs if e.node not in tensors]
        if not features:
            raise InvalidSymbol(f"{node.name} ({node.op}) does not depend on the image")
        tensors[index] = RULES[node.op](node, features)
        if min(tensors[index]) < 1:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) would be empty at {height}x{width}: {tensors[index]}"
            )
        shapes = parameter_shapes(node, features[0])
        if max(map(math.prod, (tensors[index], *shapes))) > MAX_ELEMENTS:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) is too large: expected at most {MAX_ELEMENTS} values;"
                " choose a smaller size"
            )
        if len(shapes) < len(own):
            raise InvalidSymbol(f"{node.name} ({node.op}) reads the unexpected inputs {own}")
        if math.prod(tensors[index][2:]) > MAX_PIXELS:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) computes a map of over {MAX_PIXELS} pixels; choose a"
                " smaller size"
            )
        for name, shape in zip(own, shapes, strict=False):
            if parameters.setdefault(name, shape) != shape:
                raise InvalidSymbol(f"{name} is shared as {parameters[name]} and as {shape}")
    count = sum(map(math.prod, parameters.values()))
    if count > MAX_PARAMETERS:
        raise InvalidSymbol(
            f"the network has {count} parameters, more than the {MAX_PARAMETERS} that an ONNX file"
            " holds; build it with a smaller --width"
        )
    return GraphShapes(tensors, parameters)


_RESIZE = "_contrib_BilinearResize2D"
_SOFTMAX = frozenset(SOFTMAXES)


@dataclass(frozen=True)
class SizeRule:
    """The size that a symbol was built for, and the multiples that its sizes must be of."""

    height: int
    width: int
    height_multiple: int
    width_multiple: int

    def nearest(self, height: int, width: int) -> tuple[int, int]:
        """Returns the nearest size that the network can have."""
        steps = (
            max(1, round(height / self.height_multiple)),
            max(1, round(width / self.width_multiple)),
        )
        return steps[0] * self.height_multiple, steps[1] * self.width_multiple


def built_size(graph: Graph) -> tuple[int, int] | None:
    """Returns height and width that a symbol was built for; None where no resize ties it to one.

    Raises IllegalSize where there are resizes but the first head has no size.
    """
    if not any(_is_fixed(node) for _, node in graph.operators()):
        return None
    head = _full_size_head(graph)
    if head.op != _RESIZE:
        raise IllegalSize(
            f"the symbol's first output, {head.name}, is not a resize to the image, so the size"
            " that it was built for is not known; export the network with its full-size output"
            " first"
        )
    return _target(head)


def size_rule(graph: Graph) -> SizeRule | None:
    """Reads the construction size off a symbol; None where no resize ties it to one.

    Raises IllegalSize as ``built_size`` does, or where a resize is not to a whole fraction of the
    image.
    """
    built = built_size(graph)
    if built is None:
        return None
    height, width = built
    resizes = [node for _, node in graph.operators() if _is_fixed(node)]
    rows, columns = 1, 1
    for node in resizes:
        h, w = _target(node)
        if h < 1 or w < 1 or height % h or width % w:
            raise IllegalSize(
                f"the symbol was built for {height}x{width}, of which {node.name} ({h}x{w}) is not"
                " a whole fraction: it cannot be moved to another size; generate it at the new one"
            )
        rows, columns = math.lcm(rows, height // h), math.lcm(columns, width // w)
    return SizeRule(height, width, rows, columns)


def retarget(graph: Graph, height: int, width: int) -> Graph:
    """Returns the graph for images of height x width.

    Raises IllegalSize naming the nearest legal size, or what ``size_rule`` raises, and
    InvalidSymbol where the feature maps of the network do not fit each other at that size.
    """
    return graph.derive(("retarget", height, width), lambda: _retarget(graph, height, width))


def _retarget(graph: Graph, height: int, width: int) -> Graph:
    head = _full_size_head(graph)
    if head.op == _RESIZE and _target(head) == (height, width):
        return graph
    rule = size_rule(graph)
    if rule is not None:
        if height < 1 or width < 1 or height % rule.height_multiple or width % rule.width_multiple:
            near = rule.nearest(height, width)
            raise IllegalSize(
                f"{height}x{width} is not a valid size of this network: the height must be a"
                f" multiple of {rule.height_multiple} and the width one of {rule.width_multiple};"
                f" the nearest is {near[0]}x{near[1]}"
            )
        graph = replace(graph, nodes=tuple(_moved(n, rule, height, width) for n in graph.nodes))
    infer_shapes(graph, height, width)
    return graph


def _full_size_head(graph: Graph) -> Node:
    head = graph.nodes[graph.heads[0].node]
    while head.op in _SOFTMAX:
        head = graph.nodes[head.inputs[0].node]
    return head


def _is_fixed(node: Node) -> bool:
    """True for a resize to a size, not by a factor or to another map's."""
    return node.op == _RESIZE and not (
        node.text("mode", "size") != "size" or node.text("scale_height", "")
    )


def _target(node: Node) -> tuple[int, int]:
    return node.integer("height", 0), node.integer("width", 0)


def _moved(node: Node, rule: SizeRule, height: int, width: int) -> Node:
    if not _is_fixed(node):
        return node
    h, w = _target(node)
    size = {"height": str(height * h // rule.height), "width": str(width * w // rule.width)}
    return replace(node, attrs={**node.attrs, **size})
