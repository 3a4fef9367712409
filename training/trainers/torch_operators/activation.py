"""Activations: element by element, no parameters but PReLU's slopes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from training.trainers.torch_operators.call import Call

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softrelu": functional.softplus,
    "softsign": functional.softsign,
}


def activate(call: Call) -> Tensor:
    """``Activation`` of its ``act_type``."""
    kind = call.node.text("act_type", "")
    if kind not in _ACTIVATIONS:
        raise call.refuse(f"activation {kind!r}")
    return _ACTIVATIONS[kind](call.data)


def activate_leaky(call: Call) -> Tensor:
    """``LeakyReLU``: leaky, elu or prelu."""
    kind, slope = call.node.text("act_type", "leaky"), call.node.number("slope", 0.25)
    if kind == "leaky":
        return functional.leaky_relu(call.data, slope)
    if kind == "elu":
        return functional.elu(call.data, slope)
    if kind == "prelu":
        return functional.prelu(call.data, call.inputs[1])
    raise call.refuse(f"LeakyReLU of type {kind!r}")


def clip(call: Call) -> Tensor:
    """``clip``; a value at a limit passes the gradient on, as in MXNet."""
    return call.data.clamp(call.node.number("a_min", 0), call.node.number("a_max", 0))


def activate_hard_sigmoid(call: Call) -> Tensor:
    """``alpha * x + beta`` between 0 and 1."""
    alpha, beta = call.node.number("alpha", 0.2), call.node.number("beta", 0.5)
    return (alpha * call.data + beta).clamp(0, 1)
