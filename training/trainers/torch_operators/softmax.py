"""Softmax alone, and as MXNet's output layer, whose backward pass is a loss of its own.

``SoftmaxOutput`` gives probabilities; its gradient is that of the cross-entropy with the label,
``grad_scale * (probability - onehot)``, whatever gradient comes in. Source: MXNet
``softmax_output-inl.h``.
"""

from __future__ import annotations

from torch import Tensor

from export.symbols.graph import Node
from training.trainers.torch_operators.call import Call
from training.trainers.torch_operators.given_gradient import give_gradient


def softmax(call: Call) -> Tensor:
    """``softmax`` over ``axis``."""
    if call.node.flag("use_length", False):
        raise call.refuse("softmax with lengths")
    return (call.data / call.node.number("temperature", 1)).softmax(call.node.integer("axis", -1))


def activate_softmax(call: Call) -> Tensor:
    """``SoftmaxActivation``: over the channels, or over all of an image (mode instance)."""
    if call.node.text("mode", "instance") == "channel":
        return call.data.softmax(1)
    return call.data.flatten(1).softmax(1).view_as(call.data)


def output_softmax(call: Call) -> Tensor:
    """``SoftmaxOutput``: scores ``[N,C,...]`` and labels ``[N,...]`` -> probabilities.

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
    # A label that is no class has no one: its pixels lower every score.
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
