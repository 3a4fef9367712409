"""Sums, products and their like: two tensors, several, a tensor and a number, or one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.shape_rules import BINARY
from training.trainers.torch_operators.call import Call


def _maximum(one: Tensor, other: Tensor) -> Tensor:
    # Where both are equal MXNet's gradient goes to the first; torch.maximum halves it.
    return torch.where(one >= other, one, other)


def _minimum(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(one <= other, one, other)


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Max": _maximum,
    "Min": _minimum,
}
_SCALAR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "plus": lambda x, number: x + number,
    "minus": lambda x, number: x - number,
    "mul": lambda x, number: x * number,
    "div": lambda x, number: x / number,
    "rminus": lambda x, number: number - x,
    "rdiv": lambda x, number: number / x,
    "maximum": lambda x, number: x.clamp(min=number),
    "minimum": lambda x, number: x.clamp(max=number),
    "power": lambda x, number: x**number,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "_np_relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": functional.softsign,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "abs": torch.abs,
    "negative": torch.neg,
}


def combine(call: Call) -> Tensor:
    """Two tensors, element by element; ``broadcast_*`` repeats lengths of 1."""
    return _BINARY[BINARY[call.node.op]](*call.inputs)


def combine_scalar(call: Call) -> Tensor:
    """A tensor and the attribute ``scalar``; ``rminus`` and ``rdiv`` have the number first."""
    kind = call.node.op.strip("_").lower().removesuffix("scalar").rstrip("_")
    return _SCALAR[kind](call.data, call.node.number("scalar", 0))


def compute(call: Call) -> Tensor:
    """A function of one tensor."""
    return _UNARY[call.node.op](call.data)


def add_all(call: Call) -> Tensor:
    """The sum of any number of tensors."""
    total = call.data
    for tensor in call.inputs[1:]:
        total = total + tensor
    return total
