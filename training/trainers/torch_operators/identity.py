"""Operators that hand their input on, in inference at least."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from training.trainers.torch_operators.call import Call


def pass_on(call: Call) -> Tensor:
    """``identity``."""
    return call.data


def block_gradient(call: Call) -> Tensor:
    """``BlockGrad``: no gradient goes back."""
    return call.data.detach()


def cast(call: Call) -> Tensor:
    """``Cast`` to float32, which is the precision that the module has."""
    kind = call.node.text("dtype", "float32")
    if kind not in ("float32", "0"):
        raise call.refuse(f"Cast to {kind}")
    return call.data


def drop(call: Call) -> Tensor:
    """``Dropout`` in training."""
    if call.node.text("mode", "training") != "training" or call.node.integers("axes"):
        raise call.refuse("dropout that is active at inference, or shared along axes")
    return functional.dropout(call.data, call.node.number("p", 0.5), call.training)
