"""MXNet's operators in PyTorch, with MXNet's gradients: those of
``export.lowering.operators``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from export.errors import UnsupportedOperator
from export.symbols.elementwise import FORMULAS
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
    RESHAPES,
    SLICES,
    SOFTMAX_OUTPUT,
    SPLITS,
    SUM,
)
from training.trainers.torch_operators import (
    convolutions,
    elementwise,
    normalisation,
    outputs,
    pooling,
    reductions,
    shaping,
)
from training.trainers.torch_operators import shaping as sampling
from training.trainers.torch_operators.call import Call, UnsupportedOperators

__all__ = ["Call", "UnsupportedOperators", "execute", "execute_all", "unsupported"]


def execute(call: Call) -> Tensor:
    """Returns an operator's first output. Raises UnsupportedOperators naming node and attribute."""
    return execute_all(call)[0]


def execute_all(call: Call) -> tuple[Tensor, ...]:
    """Returns all outputs of an operator. Raises UnsupportedOperators naming node and attribute."""
    try:
        found = _OPERATORS[call.node.op](call)
    except UnsupportedOperator as error:
        raise UnsupportedOperators(str(error)) from error
    return found if isinstance(found, tuple) else (found,)


def unsupported(operators: Iterable[str]) -> list[str]:
    """Returns those of the operator names that are not executed here, sorted."""
    return sorted(set(operators) - set(_OPERATORS))


_OPERATORS: dict[str, Callable[[Call], Tensor | tuple[Tensor, ...]]] = {
    "Deconvolution": convolutions.deconvolve,
    "UpSampling": convolutions.upsample,
    "_contrib_AdaptiveAvgPooling2D": pooling.pool_adaptively,
    "_contrib_BilinearResize2D": pooling.resize,
    "_contrib_div_sqrt_dim": elementwise.divide_by_root,
    "InstanceNorm": normalisation.normalise_instance,
    "LayerNorm": normalisation.normalise_layer,
    "GroupNorm": normalisation.normalise_groups,
    "L2Normalization": normalisation.normalise_length,
    "LRN": normalisation.normalise_neighbours,
    "FullyConnected": reductions.connect_fully,
    "batch_dot": reductions.multiply_batches,
    "_linalg_gemm2": reductions.multiply_batches,
    "_linalg_gemm": reductions.multiply_and_add,
    "_linalg_syrk": reductions.multiply_and_add,
    "dot": reductions.multiply,
    "moments": reductions.find_moments,
    "_np_cumsum": reductions.add_up,
    "take": reductions.take,
    "Embedding": reductions.take,
    "pick": reductions.pick,
    "one_hot": reductions.mark,
    "where": reductions.choose,
    "Concat": shaping.concatenate,
    "stack": shaping.stack,
    "Pad": shaping.pad,
    "tile": shaping.tile,
    "repeat": shaping.repeat,
    "_contrib_arange_like": shaping.make_constant,
    "GridGenerator": sampling.make_grid,
    "BilinearSampler": sampling.sample,
    "SpatialTransformer": sampling.sample,
    "im2col": sampling.make_columns,
    "col2im": sampling.make_image,
    SUM: elementwise.add_all,
    SOFTMAX_OUTPUT: outputs.output_softmax,
    "SoftmaxActivation": outputs.activate_softmax,
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), outputs.softmax),
    **dict.fromkeys(REGRESSIONS, outputs.regress),
    **dict.fromkeys(IDENTITIES, outputs.pass_on),
    "Dropout": outputs.drop,
    "BlockGrad": outputs.block_gradient,
    "MakeLoss": outputs.make_loss,
    "make_loss": outputs.make_plain_loss,
    "_contrib_gradientmultiplier": outputs.multiply_gradient,
    **dict.fromkeys(CONVOLUTIONS, convolutions.convolve),
    **dict.fromkeys(DEFORMABLE, convolutions.convolve_deformably),
    **dict.fromkeys(POOLINGS, pooling.pool),
    **dict.fromkeys(BATCH_NORMS, normalisation.normalise_batch),
    "_contrib_BatchNormWithReLU": normalisation.normalise_batch_and_rectify,
    **dict.fromkeys(RESHAPES, shaping.reshape),
    **dict.fromkeys(("transpose", "SwapAxis"), shaping.transpose),
    **dict.fromkeys(SPLITS, shaping.split),
    **dict.fromkeys(RANKINGS, reductions.rank),
    **dict.fromkeys(("depth_to_space", "space_to_depth"), shaping.move_blocks),
    **dict.fromkeys(SLICES, shaping.cut),
    **dict.fromkeys(BROADCASTS, shaping.broadcast),
    **dict.fromkeys(CONSTANTS, shaping.make_constant),
    **dict.fromkeys(REDUCTIONS, reductions.reduce),
    **dict.fromkeys(INDEX_REDUCTIONS, reductions.find_extreme),
    **dict.fromkeys(FORMULAS, elementwise.compute),
}
