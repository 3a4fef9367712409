"""MXNet's operators in PyTorch, with MXNet's gradients: those of
``export.lowering.operators``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from export.symbols.graph import BATCH_NORMS
from export.symbols.shape_rules import BINARY, DEFORMABLE, LABELLED, SCALAR, SUMS, UNARY
from training.trainers.torch_operators import (
    activation,
    arithmetic,
    convolution,
    identity,
    pooling,
    shaping,
    softmax,
)
from training.trainers.torch_operators.call import Call, UnsupportedOperators
from training.trainers.torch_operators.deformable import convolve_deformably
from training.trainers.torch_operators.given_gradient import make_loss
from training.trainers.torch_operators.normalisation import normalise_batch
from training.trainers.torch_operators.resize import resize

__all__ = ["Call", "UnsupportedOperators", "execute", "unsupported"]


def execute(call: Call) -> Tensor:
    """An operator's first output. Raises UnsupportedOperators naming node and attribute."""
    return _OPERATORS[call.node.op](call)


def unsupported(operators: Iterable[str]) -> list[str]:
    """Those of the operator names that are not executed here, sorted."""
    return sorted(set(operators) - set(_OPERATORS))


_OPERATORS: dict[str, Callable[[Call], Tensor]] = {
    "Convolution": convolution.convolve,
    "Deconvolution": convolution.deconvolve,
    "UpSampling": convolution.upsample,
    "Activation": activation.activate,
    "LeakyReLU": activation.activate_leaky,
    "clip": activation.clip,
    "hard_sigmoid": activation.activate_hard_sigmoid,
    "Pooling": pooling.pool,
    "_contrib_AdaptiveAvgPooling2D": pooling.pool_adaptively,
    "_contrib_BilinearResize2D": resize,
    "Dropout": identity.drop,
    "BlockGrad": identity.block_gradient,
    "Cast": identity.cast,
    "MakeLoss": make_loss,
    "transpose": shaping.transpose,
    "softmax": softmax.softmax,
    "SoftmaxActivation": softmax.activate_softmax,
    **dict.fromkeys(("identity", "_copy"), identity.pass_on),
    **dict.fromkeys(("Concat", "concat"), shaping.concatenate),
    **dict.fromkeys(("Flatten", "flatten"), shaping.flatten),
    **dict.fromkeys(("Reshape", "reshape"), shaping.reshape),
    **dict.fromkeys(("Pad", "pad"), shaping.pad),
    **dict.fromkeys(("Crop", "slice_axis", "slice_like"), shaping.cut),
    **dict.fromkeys(("mean", "max"), pooling.reduce),
    **dict.fromkeys(LABELLED, softmax.output_softmax),
    **dict.fromkeys(BATCH_NORMS, normalise_batch),
    **dict.fromkeys(DEFORMABLE, convolve_deformably),
    **dict.fromkeys(BINARY, arithmetic.combine),
    **dict.fromkeys(SCALAR, arithmetic.combine_scalar),
    **dict.fromkeys(SUMS, arithmetic.add_all),
    **dict.fromkeys((*UNARY, "square"), arithmetic.compute),
}
