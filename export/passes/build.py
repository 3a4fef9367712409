"""Symbol and parameters to the graph of the contract: the passes in their order.

Input ``image`` uint8 [N, H, W, 3] RGB; outputs ``mask`` uint8 [N, H, W] and ``logits`` float32
[N, C, h, w]. Opset 17, IR 8; with deformable convolutions opset 19, IR 9, unless 17 is requested.

Two passes work on the symbol, both exact. ``prune_heads`` keeps the first output alone: ICNet's
symbol has four heads and PSPNet's two; training uses them all, inference the first.
``cut_at_logits`` cuts the network before its final upsampling, at its own resolution: a softmax at
the end is dropped (it does not change which class wins), then one aligned-corners resize, as
``mask_head`` puts the same resize in front of the argmax again. An upsampling of another kind (a
deconvolution, other corners) stays, and the logits are then as large as the image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, checker, helper

from export.errors import InvalidSymbol, UnsupportedOperator
from export.lowering.convert import IR_VERSION, OPSET, convert
from export.lowering.convolutions import DEFORMABLE_OPSET
from export.passes.concatenations import factor_pyramid, image_pooling_bias
from export.passes.contract import HEADS, fold_normalisation, mask_head
from export.passes.convolutions import commute_resize, fold_batch_norm
from export.passes.onnx_graph import OnnxGraph, Rewrite
from export.passes.sample_deformable import sample_deformable
from export.symbols.graph import Graph
from export.symbols.networks import IMAGENET, Pixels
from export.symbols.params import Parameters
from export.symbols.shape_rules import IDENTITIES, SOFTMAXES
from export.symbols.shapes import infer_shapes, retarget

_TRANSPARENT = frozenset((*SOFTMAXES, *IDENTITIES))


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
    graph = without_softmax(graph)
    head = graph.heads[0]
    shapes = infer_shapes(graph, height, width)
    node = graph.nodes[head.node]
    if (
        node.op == "_contrib_BilinearResize2D"
        and node.flag("align_corners", True)
        and shapes.of(head)[2:] == (height, width)
    ):
        head = node.inputs[0]
    shape = shapes.of(head)
    if len(shape) != 4 or graph.nodes[head.node].is_variable:
        raise InvalidSymbol(
            f"{graph.nodes[head.node].name} is {shape}: expected a map of classes [N, C, h, w];"
            " export the"
            " symbol of a segmentation network"
        )
    return LogitsCut(graph.pruned([head]), *shape[1:])


def without_softmax(graph: Graph) -> Graph:
    """Returns the graph of its first head without a softmax, or what else changes no winner, behind
    it."""
    head = graph.heads[0]
    while graph.nodes[head.node].op in _TRANSPARENT:
        head = graph.nodes[head.node].inputs[0]
    return graph.pruned([head])


def prune_heads(graph: Graph) -> Graph:
    """Returns the graph of head 0 alone, without the nodes and variables of the auxiliary heads."""
    return graph.pruned(graph.heads[:1])


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
    model = convert(cut.graph, parameters, height, width)
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
