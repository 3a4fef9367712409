"""Static shapes of every tensor of a graph, and of every parameter, from the image size.

The batch is 1 here; it is symbolic in the exported graph. The rules, one an operator, are in
``shape_rules``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import InvalidSymbol, UnsupportedOperator
from export.symbols.conv_arithmetic import Shape, convolution_arithmetic
from export.symbols.graph import Entry, Graph
from export.symbols.shape_rules import LABELLED, RULES, parameter_shapes

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
    """Shapes at one image size: ``tensors`` of operators' first outputs, by node index, and
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
        raise UnsupportedOperator("the network gives out a node's second output; only first ones")
    for index, node in graph.operators():
        if any(entry.output for entry in node.inputs):
            raise UnsupportedOperator(f"{node.name} reads a second output; only first ones are")
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
            raise InvalidSymbol(f"{node.name} ({node.op}) has more than {MAX_ELEMENTS} values")
        if len(shapes) < len(own):
            raise InvalidSymbol(f"{node.name} ({node.op}) reads the unexpected inputs {own}")
        if math.prod(tensors[index][2:]) > MAX_PIXELS:
            raise InvalidSymbol(f"{node.name} ({node.op}) gives a map of over {MAX_PIXELS} pixels")
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
