"""One function an MXNet operator: the ONNX nodes (opset 17 to 19) that compute the same.

All shapes but the batch are static, so adaptive pooling and MXNet's ceiling pooling have exact
forms here that a converter for unknown sizes does not have. Operators that do nothing at
inference return no nodes and hand their input on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from onnx import TensorProto

from export.errors import UnsupportedOperator
from export.lowering import normalisations, products, reductions, reshaping, sampling
from export.lowering.context import Lowering, LoweringContext, Nodes, single
from export.lowering.convolutions import (
    convolution,
    deconvolution,
    deformable_convolution,
    resizing,
    upsampling,
)
from export.lowering.pooling import adaptive_pooling, pooling
from export.symbols.elementwise import FORMULAS, evaluate
from export.symbols.graph import BATCH_NORMS
from export.symbols.shape_rules import (
    BROADCASTS,
    CONSTANTS,
    CONVOLUTIONS,
    DEFORMABLE,
    IDENTITIES,
    INDEX_REDUCTIONS,
    POOLINGS,
    RANKINGS,
    REDUCTIONS,
    REGRESSIONS,
    SLICES,
    SOFTMAXES,
    SPLITS,
    SUM,
)


def lower(context: LoweringContext) -> Lowering:
    """Returns the ONNX form of one operator.

    Raises UnsupportedOperator naming node and attribute.
    """
    return LOWERINGS[context.node.op](context)


def unsupported(operators: Sequence[str]) -> list[str]:
    """Returns those of the operator names that have no conversion, sorted."""
    return sorted(set(operators) - set(LOWERINGS))


def _dropout(context: LoweringContext) -> Lowering:
    if context.node.text("mode", "training") != "training":
        raise UnsupportedOperator(f"{context.name}: dropout that is active at inference")
    return _identity(context)


def _identity(context: LoweringContext) -> Lowering:
    if context.node.text("dtype", "float32") not in ("float32", "0"):
        raise UnsupportedOperator(
            f"{context.name}: {context.node.op} to {context.node.attrs['dtype']}"
        )
    return Lowering((), context.inputs[0])


def _regression(context: LoweringContext) -> Lowering:
    """Returns the scores, of ``LogisticRegressionOutput`` their sigmoid; labels play no part."""
    if context.node.op == "LogisticRegressionOutput":
        nodes = Nodes(context)
        return nodes.end(nodes.add("Sigmoid", context.inputs[:1]))
    return Lowering((), context.inputs[0])


class OnnxMaths:
    """Adds nodes for the formulas of ``export.symbols.elementwise``."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def __call__(self, op: str, *inputs: str | float, **attributes: float) -> str:
        names = [self.nodes.number(x) if isinstance(x, float | int) else x for x in inputs]
        if op == "Float":
            return self.nodes.add("Cast", names, to=TensorProto.FLOAT)
        if op == "Mod":
            return self.nodes.add("Mod", names, fmod=1)
        if op == "PRelu":
            rank = len(self.nodes.context.input_shapes[0])
            names[1] = self.nodes.reshape(names[1], [-1, *[1] * (rank - 2)], "slope")
        return self.nodes.add(op, names, "", **attributes)


def elementwise(context: LoweringContext) -> Lowering:
    """Returns the nodes of a formula; the last has the operator's name."""
    nodes = Nodes(context)
    return nodes.end(evaluate(OnnxMaths(nodes), context.node, context.inputs))


def summing(context: LoweringContext) -> Lowering:
    """Returns an ONNX Sum of any number of tensors."""
    return single(context, "Sum", context.inputs)


def divided_by_root(context: LoweringContext) -> Lowering:
    """Returns ``_contrib_div_sqrt_dim``: the values by the root of the last length."""
    nodes = Nodes(context)
    root = nodes.number(math.sqrt(context.shape[-1]))
    return nodes.end(nodes.add("Div", [context.inputs[0], root]))


LOWERINGS: dict[str, Callable[[LoweringContext], Lowering]] = {
    "Deconvolution": deconvolution,
    "UpSampling": upsampling,
    "_contrib_AdaptiveAvgPooling2D": adaptive_pooling,
    "_contrib_BilinearResize2D": resizing,
    "_contrib_div_sqrt_dim": divided_by_root,
    "Dropout": _dropout,
    SUM: summing,
    "InstanceNorm": normalisations.instance_norm,
    "LayerNorm": normalisations.layer_norm,
    "GroupNorm": normalisations.group_norm,
    "L2Normalization": normalisations.l2_normalisation,
    "LRN": normalisations.local_response_norm,
    "FullyConnected": products.fully_connected,
    "batch_dot": products.batch_dot,
    "_linalg_gemm2": products.batch_dot,
    "_linalg_gemm": products.affine_product,
    "_linalg_syrk": products.affine_product,
    "dot": products.dot,
    "moments": reductions.moments,
    "_np_cumsum": reductions.running_sum,
    "take": products.taking,
    "Embedding": products.taking,
    "pick": products.picking,
    "one_hot": products.one_hot,
    "where": products.choosing,
    "Flatten": reshaping.flattening,
    "Concat": reshaping.concatenation,
    "stack": reshaping.stacking,
    "Pad": reshaping.padding,
    "tile": reshaping.tiling,
    "repeat": reshaping.repeating,
    "_contrib_arange_like": reshaping.constant_tensor,
    "GridGenerator": sampling.grid,
    "BilinearSampler": sampling.sampler,
    "SpatialTransformer": sampling.sampler,
    "im2col": sampling.columns,
    "col2im": sampling.image_of_columns,
    **dict.fromkeys(CONVOLUTIONS, convolution),
    **dict.fromkeys(DEFORMABLE, deformable_convolution),
    **dict.fromkeys(POOLINGS, pooling),
    **dict.fromkeys(BATCH_NORMS, normalisations.batch_norm),
    **dict.fromkeys(("Reshape", "reshape_like", "expand_dims", "squeeze"), reshaping.reshaping),
    **dict.fromkeys(("transpose", "SwapAxis"), reshaping.transposition),
    **dict.fromkeys(SPLITS, reshaping.splitting),
    **dict.fromkeys(RANKINGS, reductions.ranking),
    **dict.fromkeys(("depth_to_space", "space_to_depth"), reshaping.blocks),
    **dict.fromkeys(SLICES, reshaping.slicing),
    **dict.fromkeys(BROADCASTS, reshaping.broadcasting),
    **dict.fromkeys(CONSTANTS, reshaping.constant_tensor),
    **dict.fromkeys(REDUCTIONS, reductions.reduction),
    **dict.fromkeys(INDEX_REDUCTIONS, reductions.index_reduction),
    **dict.fromkeys(SOFTMAXES, reductions.softmax),
    **dict.fromkeys(REGRESSIONS, _regression),
    **dict.fromkeys(IDENTITIES, _identity),
    **dict.fromkeys(FORMULAS, elementwise),
}
