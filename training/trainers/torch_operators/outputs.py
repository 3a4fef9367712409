"""Output layers, softmax, and operators that hand their input on, in inference at least.

An output layer's backward pass is a loss of its own: ``SoftmaxOutput`` gives probabilities, and its
gradient is that of the cross-entropy with the label, ``grad_scale * (probability - onehot)``,
whatever gradient comes in. Sources: MXNet ``softmax_output-inl.h``, ``regression_output-inl.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from export.symbols.graph import Node
from training.trainers.torch_operators.call import Call


def softmax(call: Call) -> Tensor:
    """Computes ``softmax``, ``log_softmax`` or ``softmin`` over ``axis``."""
    node = call.node
    if node.flag("use_length", False):
        raise call.refuse(f"{node.op} with lengths")
    scores = call.data / node.number("temperature", 1)
    axis = node.integer("axis", -1)
    if node.op == "log_softmax":
        return scores.log_softmax(axis)
    return (-scores if node.op == "softmin" else scores).softmax(axis)


def activate_softmax(call: Call) -> Tensor:
    """Computes ``SoftmaxActivation`` over the channels, or along the last axis (mode instance)."""
    return call.data.softmax(1 if call.node.text("mode", "instance") == "channel" else -1)


def output_softmax(call: Call) -> Tensor:
    """Turns scores ``[N,C,...]`` into probabilities that learn from labels ``[N,...]``.

    In training ``ValueError`` where no labels were given: there is no gradient without.
    """
    node, scores = call.node, call.data
    # With out_grad MXNet 1.9 multiplies by its own output, not by the gradient that comes in.
    for option in ("preserve_shape", "smooth_alpha", "out_grad"):
        if node.text(option, "False") not in ("False", "false", "0", "0.0"):
            raise call.refuse(f"{option}={node.attrs[option]}")
    if not node.flag("multi_output", False) and scores.dim() != 2:
        raise call.refuse("a map without multi_output")
    if not call.training:
        return scores.softmax(1)
    if len(call.inputs) < 2:
        raise ValueError(f"{node.name} ({node.op}) learns from labels: module(images, labels)")
    probabilities = scores.detach().softmax(1)
    gradient = _gradient(node, probabilities, call.inputs[1].detach())
    return give_gradient(scores, probabilities, gradient)


def _gradient(node: Node, probabilities: Tensor, labels: Tensor) -> Tensor:
    batch, classes, *positions = probabilities.shape
    labels = labels.reshape(batch, 1, *positions).long()
    # A label that is not a class has no one: its pixels lower every score.
    gradient = probabilities.clone()
    known = (labels >= 0) & (labels < classes)
    gradient.scatter_add_(1, labels.clamp(0, classes - 1), -known.to(gradient))
    ignored = labels == int(node.number("ignore_label", -1))
    if node.flag("use_ignore", False):
        gradient.masked_fill_(ignored, 0)
    normalization = node.text("normalization", "null")
    # "null" and "batch" divide by the positions of an image as well.
    divisor: int | Tensor = labels[0].numel()
    if normalization == "batch":
        divisor = labels.numel()
    elif normalization == "valid":
        divisor = (~ignored).sum().clamp_min(1)
    return gradient * (node.number("grad_scale", 1) / divisor)


def give_gradient(data: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """Returns ``output``; the gradient of ``data`` is ``gradient`` whatever comes in."""
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
    """Returns the values as they are (``MakeLoss``); their gradient is ``grad_scale``, divided by
    the number of values above ``valid_thresh`` (valid), or of rows (batch): MXNet takes all axes
    but the last for the batch."""
    x, normalization = call.data.detach(), call.node.text("normalization", "null")
    scale = torch.full_like(x, call.node.number("grad_scale", 1))
    if normalization == "batch":
        scale = scale / (x.numel() // x.shape[-1])
    elif normalization == "valid":
        scale = scale / (x > call.node.number("valid_thresh", 0)).sum().clamp_min(1)
    return give_gradient(call.data, x, scale)


def make_plain_loss(call: Call) -> Tensor:
    """Returns the values as they are, each with the gradient 1 (``make_loss``)."""
    x = call.data.detach()
    return give_gradient(call.data, x, torch.ones_like(x))


def regress(call: Call) -> Tensor:
    """Returns the scores of ``LinearRegressionOutput`` and its like, of the logistic one their
    sigmoid.

    The gradient is that of the squared error (linear), the cross-entropy (logistic) or the
    absolute error (MAE), divided by the number of values of an image. In training ``ValueError``
    where no labels were given.
    """
    node, scores = call.node, call.data
    logistic = node.op == "LogisticRegressionOutput"
    if not call.training:
        return scores.sigmoid() if logistic else scores
    if len(call.inputs) < 2:
        raise ValueError(f"{node.name} ({node.op}) learns from labels: module(images, labels)")
    output = scores.detach()
    output = output.sigmoid() if logistic else output
    distance = output - call.inputs[1].detach().reshape(output.shape).to(output)
    if node.op == "MAERegressionOutput":
        distance = distance.sign()
    scale = node.number("grad_scale", 1) * output.shape[0] / output.numel()
    return give_gradient(scores, output, distance * scale)


def multiply_gradient(call: Call) -> Tensor:
    """Returns the input, whose gradient is multiplied by ``scalar``."""
    x, factor = call.data, call.node.number("scalar", 1)
    return x * factor + (x - x * factor).detach()


def pass_on(call: Call) -> Tensor:
    """Returns the input: ``_copy`` and its like, and ``Cast`` to float32, the module's
    precision."""
    kind = call.node.text("dtype", "float32")
    if kind not in ("float32", "0"):
        raise call.refuse(f"{call.node.op} to {kind}")
    return call.data


def block_gradient(call: Call) -> Tensor:
    """Returns the input, to which no gradient goes back."""
    return call.data.detach()


def drop(call: Call) -> Tensor:
    """Drops values in training (``Dropout``)."""
    if call.node.text("mode", "training") != "training" or call.node.integers("axes"):
        raise call.refuse("dropout that is active at inference, or shared along axes")
    return functional.dropout(call.data, call.node.number("p", 0.5), call.training)
