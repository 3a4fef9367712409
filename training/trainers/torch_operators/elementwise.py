"""Operators that compute position by position: the formulas of ``export.symbols.elementwise``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.elementwise import evaluate
from training.trainers.torch_operators.call import Call


def _maximum(one: Tensor, other: Tensor) -> Tensor:
    # Where both are equal MXNet's gradient goes to the first; torch.maximum halves it.
    return torch.where(one >= other, one, other)


def _minimum(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(one <= other, one, other)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * functional.elu(x, alpha)


def _leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return functional.leaky_relu(x, alpha)


# By ONNX's names.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Add": torch.add,
    "And": torch.logical_and, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Clip": torch.clamp, "Cos": torch.cos,
    "Cosh": torch.cosh, "Div": torch.div, "Elu": functional.elu, "Equal": torch.eq,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "HardSigmoid": _hard_sigmoid, "LeakyRelu": _leaky_relu,
    "Less": torch.lt, "LessOrEqual": torch.le, "Log": torch.log, "Max": _maximum,
    "Min": _minimum, "Mod": torch.fmod, "Mul": torch.mul, "Neg": torch.neg,
    "Not": torch.logical_not, "Or": torch.logical_or, "PRelu": functional.prelu,
    "Pow": torch.pow, "Reciprocal": torch.reciprocal, "Relu": functional.relu, "Selu": _selu,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "Sqrt": torch.sqrt,
    "Sub": torch.sub, "Tan": torch.tan, "Tanh": torch.tanh, "Where": torch.where,
    "Xor": torch.logical_xor,
}  # fmt: skip


class TorchMaths:
    """Computes the formulas' steps; numbers have the type and device of ``like``."""

    def __init__(self, like: Tensor) -> None:
        self.like = like

    def __call__(self, op: str, *inputs: Any, **attributes: float) -> Tensor:
        if op == "Float":
            truth: Tensor = inputs[0]
            return truth.to(self.like.dtype)
        tensors = [x if isinstance(x, Tensor) else self._number(x) for x in inputs]
        return _FUNCTIONS[op](*tensors, **attributes)

    def _number(self, value: float) -> Tensor:
        return torch.full((), value, dtype=self.like.dtype, device=self.like.device)


def compute(call: Call) -> Tensor:
    """Computes a formula; ``LeakyReLU`` of type ``rrelu`` draws its slopes in training."""
    node = call.node
    if call.training and node.op == "LeakyReLU" and node.text("act_type", "leaky") == "rrelu":
        lower, upper = node.number("lower_bound", 0.125), node.number("upper_bound", 0.334)
        return functional.rrelu(call.data, lower, upper, training=True)
    found: Tensor = evaluate(TorchMaths(call.data), node, call.inputs)
    return found


def add_all(call: Call) -> Tensor:
    """Returns the sum of any number of tensors."""
    total: Tensor = functools.reduce(torch.add, call.inputs)
    return total


def divide_by_root(call: Call) -> Tensor:
    """Divides the values by the root of the last length (``_contrib_div_sqrt_dim``)."""
    return call.data / math.sqrt(call.data.shape[-1])
