"""Executes an MXNet symbol in PyTorch, operator by operator, with gradients.

MXNet's newest wheels stop at CUDA 11.2; this lets today's GPUs train the same graph. Running
statistics of batch norm follow MXNet: the variance is the biased one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.params import Parameters
from export.shapes import convolution_geometry
from export.symbol import BATCH_NORMS, Graph, Node

Operator: TypeAlias = Callable[["SymbolModule", Node, list[Tensor]], Tensor]


class UnsupportedOperators(ValueError):
    """The symbol holds operators that are not executed here; all are named."""


class SymbolModule(nn.Module):
    """``module(images)`` -> one tensor a head of ``graph``.

    Parameters keep the symbol's names; ``parameters_of_symbol`` gives them back.

    Raises:
        UnsupportedOperators: naming all of them.
        ValueError: a parameter is missing.
    """

    def __init__(self, graph: Graph, parameters: Parameters) -> None:
        super().__init__()
        unknown = sorted({node.op for _, node in graph.operators()} - set(OPERATORS))
        if unknown:
            raise UnsupportedOperators(f"PyTorch cannot execute {', '.join(unknown)} here yet")
        self.graph = graph
        self.data_index = graph.data_input()
        self.weights = nn.ParameterDict()
        states = {
            graph.nodes[entry.node].name
            for _, node in graph.operators()
            if node.op in BATCH_NORMS
            for entry in node.inputs[3:5]
        }
        for index, node in enumerate(graph.nodes):
            if not node.is_variable or index == self.data_index:
                continue
            array = parameters.find(node.name)
            if array is None:
                raise ValueError(f"no parameter {node.name!r}")
            tensor = torch.tensor(array)
            if node.name in states:
                self.register_buffer(node.name, tensor)
            else:
                self.weights[node.name] = nn.Parameter(tensor)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        values: dict[int, Tensor] = {self.data_index: images}
        for index, node in enumerate(self.graph.nodes):
            if index == self.data_index:
                continue
            if node.is_variable:
                values[index] = self.variable(node.name)
            else:
                inputs = [values[entry.node] for entry in node.inputs]
                values[index] = OPERATORS[node.op](self, node, inputs)
        return tuple(values[head.node] for head in self.graph.heads)

    def variable(self, name: str) -> Tensor:
        """A parameter or running statistic, by the symbol's name."""
        if name in self.weights:
            return self.weights[name]
        return self.get_buffer(name)

    def parameters_of_symbol(self) -> Parameters:
        """Copies of all arrays, float32, as ``export.params`` writes them."""
        return Parameters(
            {name: _array(weight) for name, weight in self.weights.items()},
            {name: _array(state) for name, state in self.named_buffers()},
        )


def _array(tensor: Tensor):  # type: ignore[no-untyped-def]
    return tensor.detach().float().cpu().numpy().copy()


def _convolution(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    _, stride, dilate, pad = convolution_geometry(node)
    bias = inputs[2] if len(inputs) > 2 else None
    groups = node.integer("num_group", 1)
    return functional.conv2d(inputs[0], inputs[1], bias, stride, pad, dilate, groups)


def _batch_norm(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    x, gamma, beta, mean, variance = inputs
    if node.flag("fix_gamma", True):
        gamma = torch.ones_like(gamma)
    epsilon, momentum = node.number("eps", 1e-3), node.number("momentum", 0.9)
    if not module.training or node.flag("use_global_stats", False):
        return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)
    # The backward pass keeps what it was given, so the buffers themselves are written after it.
    moved = mean.clone(), variance.clone()
    result = functional.batch_norm(x, *moved, gamma, beta, True, 1 - momentum, epsilon)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        mean.copy_(moved[0])
        # PyTorch has added the unbiased variance; MXNet adds the biased one.
        kept = momentum * variance
        variance.copy_(kept + (moved[1] - kept) * ((count - 1) / count))
    return result


def _activation(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    kind = node.text("act_type", "") if node.op == "Activation" else node.op
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": functional.relu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "softrelu": functional.softplus,
        "softsign": functional.softsign,
    }
    if kind not in known:
        raise UnsupportedOperators(f"{node.name}: activation {kind!r}")
    return known[kind](inputs[0])


def _pooling(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    x, kind = inputs[0], node.text("pool_type", "max")
    if kind not in ("max", "avg"):
        raise UnsupportedOperators(f"{node.name}: pooling of type {kind!r}")
    if node.flag("global_pool", False):
        return x.mean((2, 3), keepdim=True) if kind == "avg" else x.amax((2, 3), keepdim=True)
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    ceil = node.text("pooling_convention", "valid") == "full"
    if kind == "max":
        return functional.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil)
    counted = node.flag("count_include_pad", True)
    return functional.avg_pool2d(x, kernel, stride, pad, ceil, counted)


def _adaptive_pooling(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    size = node.integers("output_size", (1,))
    return functional.adaptive_avg_pool2d(inputs[0], size if len(size) == 2 else size * 2)


def _resize(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    if node.text("mode", "size") != "size":
        raise UnsupportedOperators(f"{node.name}: BilinearResize2D of mode {node.text('mode', '')}")
    size = node.integer("height", 1), node.integer("width", 1)
    aligned = node.flag("align_corners", True)
    if aligned and inputs[0].dtype == torch.float64:
        rows, columns = (
            _interpolation(before, after)
            for before, after in zip(inputs[0].shape[2:], size, strict=True)
        )
        return rows @ inputs[0] @ columns.T
    return functional.interpolate(inputs[0], size, mode="bilinear", align_corners=aligned)


def _interpolation(before: int, after: int) -> Tensor:
    """The float64 matrix ``[after,before]`` of a resize, its positions in float32.

    MXNet computes positions in float32 whatever the data are; in float64 that would show.
    """
    step = np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.float32(0)
    positions = np.arange(after, dtype=np.float32) * step
    lower = positions.astype(np.int64)
    upper = np.minimum(lower + 1, before - 1)
    fraction = (positions - lower.astype(np.float32)).astype(np.float64)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after), lower), 1.0 - fraction)
    np.add.at(matrix, (np.arange(after), upper), fraction)
    return torch.from_numpy(matrix)


def _dropout(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    return functional.dropout(inputs[0], node.number("p", 0.5), module.training)


def _concat(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    return torch.cat(inputs, node.integer("dim", 1))


def _add(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    return inputs[0] + inputs[1]


def _multiply(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    return inputs[0] * inputs[1]


def _identity(module: SymbolModule, node: Node, inputs: list[Tensor]) -> Tensor:
    return inputs[0]


OPERATORS: dict[str, Operator] = {
    "Convolution": _convolution,
    "Pooling": _pooling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "_contrib_BilinearResize2D": _resize,
    "Dropout": _dropout,
    **dict.fromkeys(("Activation", "relu", "sigmoid", "tanh"), _activation),
    **dict.fromkeys(("Concat", "concat"), _concat),
    **dict.fromkeys(("elemwise_add", "_Plus", "_plus", "broadcast_add", "_add"), _add),
    **dict.fromkeys(("elemwise_mul", "broadcast_mul"), _multiply),
    **dict.fromkeys(("identity", "_copy"), _identity),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
}
