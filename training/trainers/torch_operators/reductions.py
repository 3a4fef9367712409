"""Sums, means, largest values and their places; products of matrices; values picked by index."""

from __future__ import annotations

import torch
from torch import Tensor

from export.symbols.reshape_rules import axes_of, axis_of
from export.symbols.shape_rules import RULES, SEVERAL
from training.trainers.torch_operators.call import Call


def reduce(call: Call) -> Tensor:
    """Reduces over ``axis``, or over all others where ``exclude``: ``sum``, ``mean``, ``prod``,
    ``max``, ``min``, ``norm``; ``nansum`` and ``nanprod`` leave out what is not a number."""
    node, x = call.node, call.data
    axes, op = axes_of(node, x.dim()), node.op
    if op in ("nansum", "nanprod"):
        x = torch.where(x.isnan(), 0 if op == "nansum" else 1, x)
        op = op.removeprefix("nan")
    if op == "sum":
        found = x.sum(axes, keepdim=True)
    elif op == "mean":
        found = x.mean(axes, keepdim=True)
    elif op == "norm":
        order = node.integer("ord", 2)
        if order not in (1, 2):
            raise call.refuse(f"norm of order {order}")
        found = torch.linalg.vector_norm(x, order, axes, keepdim=True)
    elif op == "prod":
        found = x
        for axis in axes:
            found = found.prod(axis, keepdim=True)
    else:
        extreme = (x.detach().amax if op == "max" else x.detach().amin)(axes, keepdim=True)
        # Each of several equal values has the whole gradient; amax would divide it among them.
        found = extreme + torch.where(x == extreme, x - x.detach(), 0).sum(axes, keepdim=True)
    return found.reshape(RULES[node.op](node, call.shapes))


def find_extreme(call: Call) -> Tensor:
    """Returns the index of the largest or smallest value as a number, without a gradient."""
    node, x = call.node, call.data
    axis, kept = node.integer("axis", 0), node.flag("keepdims", False)
    if node.op == "argmax_channel":
        axis, kept = 1, False
    find = torch.argmin if node.op == "argmin" else torch.argmax
    return find(x, axis, keepdim=kept).to(x.dtype)


def find_moments(call: Call) -> tuple[Tensor, ...]:
    """Returns mean and variance along axes."""
    axes, kept = axes_of(call.node, call.data.dim(), "axes"), call.node.flag("keepdims", False)
    mean = call.data.mean(axes, keepdim=True)
    variance = (call.data - mean).square().mean(axes, keepdim=True)
    if kept:
        return mean, variance
    shape = SEVERAL["moments"](call.node, call.shapes)[0]
    return mean.reshape(shape), variance.reshape(shape)


def rank(call: Call) -> tuple[Tensor, ...]:
    """Returns sorted values, their indices as numbers, or both (``topk``, ``sort``,
    ``argsort``)."""
    node, x = call.node, call.data
    axis = axis_of(node, x.dim(), default=-1)
    count = SEVERAL[node.op](node, call.shapes)[0][axis]
    falling = not node.flag("is_ascend", node.op != "topk")
    values, places = x.sort(stable=True, dim=axis, descending=falling)
    parts = values.narrow(axis, 0, count), places.narrow(axis, 0, count).to(x.dtype)
    kind = {"sort": "value", "argsort": "indices"}.get(node.op, node.text("ret_typ", "indices"))
    return parts if kind == "both" else (parts[0 if kind == "value" else 1],)


def add_up(call: Call) -> Tensor:
    """Adds up along an axis (``cumsum``)."""
    if not call.node.text("axis", ""):
        raise call.refuse("cumsum without an axis")
    return call.data.cumsum(call.node.integer("axis", 0))


def multiply_and_add(call: Call) -> Tensor:
    """Computes ``_linalg_gemm``, to which a matrix is added, and ``_linalg_syrk``, of one
    matrix."""
    node, first = call.node, call.data
    if node.op == "_linalg_syrk":
        turned = first.transpose(-1, -2)
        product = turned @ first if node.flag("transpose", False) else first @ turned
        return product * node.number("alpha", 1)
    return multiply_batches(call) + call.inputs[2] * node.number("beta", 1)


def connect_fully(call: Call) -> Tensor:
    """Computes ``FullyConnected`` of the flattened input, or along its last axis."""
    weight, *bias = call.inputs[1:]
    x = call.data.flatten(1) if call.node.flag("flatten", True) else call.data
    product = x @ weight.T
    return product + bias[0] if bias else product


def multiply_batches(call: Call) -> Tensor:
    """Multiplies along the last two axes (``batch_dot`` and ``_linalg_gemm2``)."""
    node = call.node
    left, right = (
        x.transpose(-1, -2) if node.flag(key, False) else x
        for x, key in zip(call.inputs[:2], ("transpose_a", "transpose_b"), strict=True)
    )
    return left @ right * node.number("alpha", 1)


def multiply(call: Call) -> Tensor:
    """Multiplies the last axis of one with the first of the other (``dot``)."""
    left, right = call.inputs
    if call.node.flag("transpose_a", False):
        left = left.movedim(0, -1)
    if call.node.flag("transpose_b", False):
        right = right.movedim(-1, 0)
    product: Tensor = torch.tensordot(left, right, 1)
    return product.reshape(RULES["dot"](call.node, call.shapes))


def take(call: Call) -> Tensor:
    """Takes values along an axis, or ``Embedding``'s rows of its weights."""
    if call.node.op == "Embedding":
        chosen, source = call.inputs
        axis, mode = 0, "clip"
    else:
        source, chosen = call.inputs
        axis, mode = axis_of(call.node, source.dim()), call.node.text("mode", "clip")
    index = _indices(call, chosen, source.shape[axis], mode)
    return source.index_select(axis, index.flatten()).reshape(
        *source.shape[:axis], *chosen.shape, *source.shape[axis + 1 :]
    )


def pick(call: Call) -> Tensor:
    """Picks one value along an axis by the index of each position."""
    source, chosen = call.inputs
    axis = axis_of(call.node, source.dim(), default=-1)
    index = _indices(call, chosen, source.shape[axis], call.node.text("mode", "clip"))
    shape = [1 if i == axis else n for i, n in enumerate(source.shape)]
    found = source.gather(axis, index.reshape(shape))
    return found if call.node.flag("keepdims", False) else found.squeeze(axis)


def _indices(call: Call, chosen: Tensor, length: int, mode: str) -> Tensor:
    if mode == "raise":
        raise call.refuse("mode raise")
    whole = chosen.detach().long()
    return whole.remainder(length) if mode == "wrap" else whole.clamp(0, length - 1)


def mark(call: Call) -> Tensor:
    """Marks classes (``one_hot``): no index beyond them has a one."""
    node, chosen = call.node, call.data
    if node.text("dtype", "float32") != "float32":
        raise call.refuse(f"values of {node.attrs['dtype']}")
    classes = torch.arange(node.integer("depth", 0), device=chosen.device)
    on, off = node.number("on_value", 1), node.number("off_value", 0)
    return torch.where(chosen.detach().long()[..., None] == classes, on, off).to(chosen.dtype)


def choose(call: Call) -> Tensor:
    """Returns the second input where the first is not 0, else the third (``where``)."""
    condition, one, other = call.inputs
    return torch.where(condition != 0, one, other)
