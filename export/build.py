"""The passes in their order: symbol and parameters to the graph of the contract.

Input ``image`` uint8 [N, H, W, 3] RGB; outputs ``mask`` uint8 [N, H, W] and ``logits`` float32
[N, C, h, w]. Opset 17, IR 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, checker

from export.convert import convert
from export.params import Parameters
from export.passes.commute_resize import commute_resize
from export.passes.cut_at_logits import cut_at_logits
from export.passes.factor_pyramid import factor_pyramid
from export.passes.fold_batch_norm import fold_batch_norm
from export.passes.fold_normalisation import fold_normalisation
from export.passes.mask_head import HEADS, mask_head
from export.passes.prune_heads import prune_heads
from export.retarget import retarget
from export.symbol import Graph


def build_model(
    symbol: Graph,
    parameters: Parameters,
    height: int,
    width: int,
    heads: Sequence[str] = HEADS,
) -> ModelProto:
    """Builds the serving graph of a network for images of height x width.

    Raises IllegalSize, UnsupportedOperator, InvalidSymbol or InvalidParams.
    """
    graph = prune_heads(retarget(symbol, height, width))
    cut = cut_at_logits(graph, height, width)
    model = convert(cut.graph, parameters, height, width)
    fold_batch_norm(model)
    factor_pyramid(model)
    commute_resize(model)
    fold_normalisation(model)
    mask_head(model, height, width, heads)
    checker.check_model(model)
    return model


def number_of_classes(symbol: Graph, height: int, width: int) -> int:
    """The classes that the network tells apart at a legal size."""
    graph = prune_heads(retarget(symbol, height, width))
    return cut_at_logits(graph, height, width).classes


def set_metadata(model: ModelProto, facts: Mapping[str, str]) -> None:
    """Stores facts in the file itself (``metadata_props``), so that they travel with it."""
    del model.metadata_props[:]
    for key in sorted(facts):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, facts[key]
