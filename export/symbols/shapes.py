"""Static shapes of every tensor of a graph, and of every parameter, from the image size.

The batch is 1 here; it is symbolic in the exported graph. The rules, one an operator, are in
``shape_rules``. They run with a prime for the batch, larger than any length: an axis whose length
is a multiple of it depends on the batch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from export.errors import ExportError, InvalidSymbol, UnsupportedOperator
from export.symbols.conv_arithmetic import Shape, convolution_arithmetic
from export.symbols.graph import Entry, Graph, Node
from export.symbols.shape_rules import (
    LABELLED,
    NORMS,
    RULES,
    SEVERAL,
    SOFTMAX_OUTPUT,
    data_inputs,
    parameter_shapes,
)

__all__ = ["GraphShapes", "Shape", "convolution_arithmetic", "infer_shapes"]

CHANNELS = 3
# Of one tensor, as a file may ask for any; 2,048 channels of 1024x2048 have half as many.
MAX_ELEMENTS = 1 << 33
# Of one map: 8192x8192.
MAX_PIXELS = 1 << 26
# Of all parameters together: 2 GiB of float32, more than an ONNX file can hold.
MAX_PARAMETERS = 1 << 29
_BATCH = (1 << 31) - 1
# Operators that treat every image alike only where the batch is the first axis.
_OF_IMAGES = frozenset({
    "Convolution", "Convolution_v1", "Deconvolution", "Pooling", "Pooling_v1", "UpSampling",
    "_contrib_AdaptiveAvgPooling2D", "_contrib_BilinearResize2D", "BatchNorm", "BatchNorm_v1",
    "_contrib_SyncBatchNorm", "_contrib_BatchNormWithReLU", "L2Normalization", "LRN", "Flatten",
    "BilinearSampler", "GridGenerator", "SpatialTransformer", "im2col", "col2im",
    "depth_to_space", "space_to_depth", "SoftmaxActivation", SOFTMAX_OUTPUT, *NORMS,
})  # fmt: skip
# Operators that mix what lies along an axis without changing its length.
_ALONG_AXIS = {"softmax": -1, "log_softmax": -1, "softmin": -1, "reverse": 0, "LayerNorm": -1,
               "_np_cumsum": 0, "topk": -1, "sort": -1, "argsort": -1}  # fmt: skip


@dataclass(frozen=True)
class GraphShapes:
    """Shapes at one image size.

    Attributes:
        tensors: those of operators' first outputs, by node index.
        parameters: by variable name.
        entries: of every output and every variable that is read, the batch being ``batch``.
    """

    tensors: Mapping[int, Shape]
    parameters: Mapping[str, Shape]
    entries: Mapping[Entry, Shape]

    def of(self, entry: Entry) -> Shape:
        """Returns the shape of an entry for one image, (1, C, H, W) for feature maps."""
        return at_one(self.entries[entry])

    def outputs(self, index: int) -> int:
        """Returns how many outputs a node has."""
        return next(n for n in itertools.count() if Entry(index, n) not in self.entries)

    def open_shape(self, entry: Entry) -> Shape:
        """Returns the shape of an entry with -1 where it depends on the batch."""
        return tuple(-1 if n % _BATCH == 0 else n for n in self.entries[entry])


def at_one(shape: Shape) -> Shape:
    """Returns a shape for a batch of one image."""
    return tuple(n // _BATCH if n % _BATCH == 0 else n for n in shape)


def infer_shapes(graph: Graph, height: int, width: int) -> GraphShapes:
    """Propagates (1, 3, height, width) through the graph, once a graph and size.

    Raises UnsupportedOperator naming every operator without a rule, and InvalidSymbol where
    shapes do not fit each other, naming the node.
    """
    return graph.derive(("shapes", height, width), lambda: _propagate(graph, height, width))


def _propagate(graph: Graph, height: int, width: int) -> GraphShapes:
    known = RULES.keys() | SEVERAL.keys()
    unknown = {node.op for _, node in graph.operators() if node.op not in known}
    if unknown:
        raise UnsupportedOperator(
            "no conversion for the operators " + ", ".join(sorted(unknown))
            + "; export a network without them"
        )  # fmt: skip
    found = _Propagation(graph, (_BATCH, CHANNELS, height, width))
    for index, node in graph.operators():
        try:
            found.enter(index, node)
        except ExportError as error:
            # As for one image: nobody knows the number that stands for the batch.
            text = re.sub(r"\d{10,}", lambda m: str(_one_image(int(m[0]))), str(error))
            raise type(error)(text) from error
    for head in graph.heads:
        if head not in found.entries:
            raise InvalidSymbol(f"{graph.nodes[head.node].name} has no output {head.output}")
        shape = found.entries[head]
        if not shape or shape[0] % _BATCH:
            node = graph.nodes[head.node]
            raise InvalidSymbol(
                f"{node.name} ({node.op}) gives {at_one(shape)}, which does not depend on the"
                " image with the batch in front; was the symbol made for a fixed batch?"
            )
    count = sum(map(math.prod, found.parameters.values()))
    if count > MAX_PARAMETERS:
        raise InvalidSymbol(
            f"the network has {count} parameters, more than the {MAX_PARAMETERS} that an ONNX file"
            " holds; build it with a smaller --width"
        )
    first = {e.node: at_one(shape) for e, shape in found.entries.items()
             if not e.output and not (graph.nodes[e.node].name in found.parameters
                                      and graph.nodes[e.node].is_variable)}  # fmt: skip
    return GraphShapes(first, found.parameters, found.entries)


def _one_image(number: int) -> int:
    return number // _BATCH if number % _BATCH == 0 else number


class _Propagation:
    """Enters one operator after another; ``entries`` has the shapes so far."""

    def __init__(self, graph: Graph, image: Shape) -> None:
        self.graph, self.image = graph, image
        self.entries: dict[Entry, Shape] = {Entry(graph.data_input()): image}
        self.parameters: dict[str, Shape] = {}
        for index, node in enumerate(graph.nodes):
            if node.is_variable and (shape := node.declared_shape()):
                self.entries.setdefault(Entry(index), shape)

    def enter(self, index: int, node: Node) -> None:
        """Reckons the outputs of one operator, whose inputs are known."""
        if node.op in LABELLED:
            # The label: a variable that inference does not read, no parameter.
            data = self.entries.get(node.inputs[0], ())
            label = (*data[:1], *data[2:]) if node.op == SOFTMAX_OUTPUT else data
            for entry in node.inputs[1:]:
                self.entries.setdefault(entry, label)
            inputs = node.inputs[:1]
        else:
            inputs = node.inputs
        own = data_inputs(node)
        features = self._features(node, inputs[:own])
        self._check_batch(node, features)
        several = node.op in SEVERAL
        shapes = SEVERAL[node.op](node, features) if several else [RULES[node.op](node, features)]
        self._check(node, features, shapes)
        for output, shape in enumerate(shapes):
            self.entries[Entry(index, output)] = shape
        if own is not None:
            self._enter_parameters(node, inputs[own:], parameter_shapes(node, features[0]))

    def _features(self, node: Node, inputs: tuple[Entry, ...]) -> list[Shape]:
        features = []
        given = [self.entries[entry] for entry in inputs if entry in self.entries]
        for entry in inputs:
            variable = self.graph.nodes[entry.node]
            if entry not in self.entries:
                if not variable.is_variable:
                    raise InvalidSymbol(f"{variable.name} has no output {entry.output}")
                # Beside a tensor of the network MXNet gives it the same shape.
                if not given or given[0][:1] == (_BATCH,) or not node.op.startswith("elemwise"):
                    raise InvalidSymbol(
                        f"{node.name} ({node.op}) reads {variable.name}, whose shape is not known:"
                        " expected __shape__ among its attributes, as mx.sym.Variable(name, shape)"
                        " writes it"
                    )
                self.entries[entry] = given[0]
            if variable.is_variable and self.entries[entry] is not self.image:
                self._enter_parameter(variable.name, self.entries[entry])
            features.append(self.entries[entry])
        return features

    def _enter_parameters(
        self, node: Node, inputs: tuple[Entry, ...], expected: list[Shape]
    ) -> None:
        names = [self.graph.nodes[entry.node].name for entry in inputs]
        if len(expected) < len(inputs):
            raise InvalidSymbol(f"{node.name} ({node.op}) reads the unexpected inputs {names}")
        for entry, shape in zip(inputs, expected, strict=False):
            variable = self.graph.nodes[entry.node]
            known = self.entries.get(entry)
            if not variable.is_variable:
                if known != shape:
                    raise InvalidSymbol(f"{variable.name} is {known}, {node.name} needs {shape}")
                continue
            if node.op == "LeakyReLU" and known == (1,):  # one slope for all channels
                shape = known
            self.entries[entry] = shape
            self._enter_parameter(variable.name, shape)

    def _enter_parameter(self, name: str, shape: Shape) -> None:
        if self.parameters.setdefault(name, shape) != shape:
            raise InvalidSymbol(f"{name} is shared as {self.parameters[name]} and as {shape}")

    def _check_batch(self, node: Node, features: list[Shape]) -> None:
        """Raises UnsupportedOperator where an operator takes another axis than the first for the
        batch, or mixes what lies along it."""
        named = f"{node.name} ({node.op})"
        first = features[0] if features else ()
        if node.op in _OF_IMAGES and any(n % _BATCH == 0 for n in first[1:]):
            raise UnsupportedOperator(
                f"{named} reads {at_one(first)}, in which the batch is not the first axis"
            )
        if node.op in _ALONG_AXIS and first:
            axes = node.integers("axis", (_ALONG_AXIS[node.op],))
            if any(first[axis % len(first)] % _BATCH == 0 for axis in axes):
                raise UnsupportedOperator(f"{named} mixes the images of a batch along axis {axes}")

    def _check(self, node: Node, features: list[Shape], shapes: list[Shape]) -> None:
        """Raises InvalidSymbol for sizes that nothing has, UnsupportedOperator where the images of
        a batch would not stay apart."""
        named = f"{node.name} ({node.op})"
        for shape in shapes:
            one = at_one(shape)
            if min(one, default=1) < 1:
                height, width = self.image[2:]
                raise InvalidSymbol(f"{named} would be empty at {height}x{width}: {one}")
            if math.prod(one) > MAX_ELEMENTS:
                raise InvalidSymbol(f"{named} has more than {MAX_ELEMENTS} values")
            if len(one) == 4 and math.prod(one[2:]) > MAX_PIXELS:
                raise InvalidSymbol(f"{named} gives a map of over {MAX_PIXELS} pixels")
        for shape in parameter_shapes(node, features[0]) if data_inputs(node) else []:
            if math.prod(shape) > MAX_ELEMENTS:
                raise InvalidSymbol(f"{named} has more than {MAX_ELEMENTS} values")
        batched = [shape for shape in features if any(n % _BATCH == 0 for n in shape)]
        for shape in shapes:
            count = sum(n % _BATCH == 0 for n in shape)
            if count > 1 or (batched and not count and node.op not in _OF_LENGTHS):
                raise UnsupportedOperator(
                    f"{named} mixes the images of a batch: {at_one(features[0])} ->"
                    f" {at_one(shape)}; expected an operator that leaves the batch alone"
                )


# These read lengths alone.
_OF_LENGTHS = frozenset({"_contrib_arange_like"})
