"""Moves a symbol to another image size.

A hybridized network is built for one size, which stands only in its resizes: each goes to a
whole fraction of the image (ICNet: 1/2 to 1/32). The fractions are read off the symbol, whose
first head is resized to the image itself, and applied to the new size. The result equals a
symbol generated at that size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from export.errors import ExportError, IllegalSize
from export.symbols.graph import Graph, Node
from export.symbols.shape_rules import keeps_winner
from export.symbols.shapes import infer_shapes

_RESIZE = "_contrib_BilinearResize2D"


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

    Raises IllegalSize as ``built_size`` does, or where a resize is not a whole fraction of the
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
    if head.op == _RESIZE:
        if _target(head) == (height, width):
            return graph
    elif _is_built_for(graph, height, width):
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


def _is_built_for(graph: Graph, height: int, width: int) -> bool:
    """Returns whether a network that ends otherwise than in a resize gives a map of this size for
    an image of this size."""
    try:
        shape = infer_shapes(graph, height, width).of(graph.heads[0])
    except ExportError:
        return False
    return shape[2:] == (height, width)


def _full_size_head(graph: Graph) -> Node:
    head = graph.nodes[graph.heads[0].node]
    while keeps_winner(head):
        head = graph.nodes[head.inputs[0].node]
    return head


def _is_fixed(node: Node) -> bool:
    """Returns True for a resize to a size, not by a factor or to another map's."""
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
