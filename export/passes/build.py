"""Runs the passes in their order: symbol and parameters to the graph of the contract.

The symbol is cut to its first head and before its final resize; a softmax or sigmoid at the end is
dropped, as it does not change which class wins.

Input ``image`` uint8 [N, H, W, 3] RGB; outputs ``mask`` uint8 [N, H, W] and ``logits`` float32
[N, C, h, w]. Opset 17, IR 8; with deformable convolutions opset 19, IR 9, unless 17 is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto, checker, helper

from export.errors import InvalidSymbol, UnsupportedOperator
from export.lowering.convert import IR_VERSION, OPSET, convert
from export.lowering.convolutions import DEFORMABLE_OPSET
from export.passes.concatenations import factor_pyramid, image_pooling_bias
from export.passes.contract import HEADS, fold_normalisation, mask_head
from export.passes.convolutions import commute_resize, fold_batch_norm
from export.passes.onnx_graph import OnnxGraph, Rewrite
from export.passes.sample_deformable import sample_deformable
from export.symbols.graph import Entry, Graph, Node
from export.symbols.networks import IMAGENET, Pixels
from export.symbols.params import Parameters
from export.symbols.shape_rules import is_sigmoid, keeps_winner
from export.symbols.shapes import infer_shapes
from export.symbols.sizes import retarget

PASSES = "passes"
OPSETS = (OPSET, DEFORMABLE_OPSET)
# Between the conversion and the heads. Image pooling goes first: it is the cheaper form of what
# the pyramid's pass would do to it.
REWRITES: Mapping[str, Rewrite] = {
    rewrite.name: rewrite
    for rewrite in (fold_batch_norm, image_pooling_bias, factor_pyramid, commute_resize)
}


def build_model(
    symbol: Graph,
    parameters: Parameters,
    height: int,
    width: int,
    heads: Sequence[str] = HEADS,
    without: Collection[str] = (),
    pixels: Pixels = IMAGENET,
    opset: int | None = None,
) -> ModelProto:
    """Builds the serving graph of a network for images of height x width.

    ``pixels`` is what the network was trained to see. ``without`` names rewrites to leave out,
    for measurements of what they bring. Those that changed something stand in the metadata under
    ``passes``. ``opset`` 17 is for runtimes without DeformConv; None is the lowest that holds the
    network's operators. Raises IllegalSize, UnsupportedOperator, InvalidSymbol or InvalidParams.
    """
    check_opset(opset)
    cut = cut_at_logits(prune_heads(retarget(symbol, height, width)), height, width)
    model = convert(cut.graph, parameters, height, width, opset)
    applied = ["prune_heads"] if len(symbol.heads) > 1 else []
    applied.append("cut_at_logits")
    graph = OnnxGraph(model)
    chosen = [rewrite for name, rewrite in REWRITES.items() if name not in without]
    if opset == OPSET:
        chosen.insert(0, sample_deformable)
    for rewrite in chosen:
        if rewrite.apply(graph).applied:
            applied.append(rewrite.name)
    if sample_deformable.name in applied:
        _set_opset(model)
    fold_normalisation(model, pixels)
    applied.append("fold_normalisation")
    mask_head(model, height, width, heads)
    set_metadata(model, {PASSES: ",".join([*applied, "mask_head"])})
    checker.check_model(model)
    return model


def check_opset(opset: int | None) -> None:
    """Raises UnsupportedOperator for another opset than the exporter writes."""
    if opset not in (None, *OPSETS):
        known = " or ".join(map(str, OPSETS))
        raise UnsupportedOperator(f"--opset {opset} is not a valid opset: expected {known}")


def number_of_classes(symbol: Graph, height: int, width: int) -> int:
    """Returns the classes that the network distinguishes at a legal size."""
    graph = prune_heads(retarget(symbol, height, width))
    return cut_at_logits(graph, height, width).classes


def set_metadata(model: ModelProto, facts: Mapping[str, str]) -> None:
    """Stores facts in the file itself (``metadata_props``), so that they travel with it.

    They replace what stood there, but for ``passes``.
    """
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key == PASSES}
    facts = {**kept, **facts}
    del model.metadata_props[:]
    for key in sorted(facts):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, facts[key]


def _set_opset(model: ModelProto) -> None:
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION


@dataclass(frozen=True)
class LogitsCut:
    """The cut graph, whose one head is the logits [1, classes, height, width]."""

    graph: Graph
    classes: int
    height: int
    width: int


def cut_at_logits(graph: Graph, height: int, width: int) -> LogitsCut:
    """Cuts a graph with one head, built for images of height x width.

    Raises InvalidSymbol where the head is not a map of classes.
    """
    graph = with_logits(graph, height, width)
    head = graph.heads[0]
    shapes = infer_shapes(graph, height, width)
    if _is_final_resize(graph, height, width):
        head = graph.nodes[head.node].inputs[0]
    shape = shapes.of(head)
    if len(shape) != 4 or shape[0] != 1 or graph.nodes[head.node].is_variable:
        raise InvalidSymbol(
            f"{graph.nodes[head.node].name} gives {shape}, not a map of classes; is this a"
            " segmentation network?"
        )
    if shape[1] == 1:
        raise InvalidSymbol(
            f"{graph.nodes[head.node].name} gives one channel, which tells no classes apart;"
            " expected one for each class, or one that ends in a sigmoid or a"
            " LogisticRegressionOutput"
        )
    return LogitsCut(graph.pruned([head]), *shape[1:])


def with_logits(graph: Graph, height: int, width: int) -> Graph:
    """Returns the graph of its first head without a softmax, or what else changes no winner, behind
    it; one channel behind a sigmoid becomes two."""
    head, sigmoid = graph.heads[0], False
    while keeps_winner(graph.nodes[head.node]):
        sigmoid = sigmoid or is_sigmoid(graph.nodes[head.node])
        head = graph.nodes[head.node].inputs[0]
    graph = graph.pruned([head])
    if not sigmoid or infer_shapes(graph, height, width).of(graph.heads[0])[1:2] != (1,):
        return graph
    return _with_two_channels(graph, height, width)


def _with_two_channels(graph: Graph, height: int, width: int) -> Graph:
    (head,), nodes = graph.heads, list(graph.nodes)
    resize = nodes[head.node] if _is_final_resize(graph, height, width) else None
    scores = resize.inputs[0] if resize else head
    nodes.append(Node("_mul_scalar", "logits_of_background", (scores,), {"scalar": "0"}))
    both = (Entry(len(nodes) - 1), scores)
    nodes.append(Node("Concat", "logits_of_both", both, {"num_args": "2", "dim": "1"}))
    if resize:
        entry = Entry(len(nodes) - 1)
        nodes.append(replace(resize, name=f"{resize.name}_of_both", inputs=(entry,)))
    made = Graph(tuple(nodes), (Entry(len(nodes) - 1),))
    return made.pruned(made.heads)


def _is_final_resize(graph: Graph, height: int, width: int) -> bool:
    head = graph.heads[0]
    node = graph.nodes[head.node]
    return (
        node.op == "_contrib_BilinearResize2D"
        and node.flag("align_corners", True)
        and infer_shapes(graph, height, width).of(head)[2:] == (height, width)
    )


def prune_heads(graph: Graph) -> Graph:
    """Returns the graph of head 0 alone, without the nodes and variables of the auxiliary heads."""
    return graph.pruned(graph.heads[:1])
