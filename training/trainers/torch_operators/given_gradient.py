"""Operators of MXNet whose backward pass does not read the gradient that comes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.trainers.torch_operators.call import Call


def give_gradient(data: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """``output``; the gradient of ``data`` is ``gradient`` whatever comes in."""
    result: Tensor = _GivenGradient.apply(data, output, gradient)  # type: ignore[no-untyped-call]
    return result


class _GivenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None, None


def make_loss(call: Call) -> Tensor:
    """``MakeLoss``: the values as they are; their gradient is ``grad_scale``, divided by the number
    of values above ``valid_thresh`` (valid), or of rows (batch): MXNet takes all axes but the last
    for the batch."""
    x, normalization = call.data.detach(), call.node.text("normalization", "null")
    scale = torch.full_like(x, call.node.number("grad_scale", 1))
    if normalization == "batch":
        scale = scale / (x.numel() // x.shape[-1])
    elif normalization == "valid":
        scale = scale / (x > call.node.number("valid_thresh", 0)).sum().clamp_min(1)
    return give_gradient(call.data, x, scale)
