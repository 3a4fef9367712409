"""Normalisations: over a batch, or over parts of one image.

MXNet's running variance is the biased one. A batch is that of all processes where ``--syncbn`` is
given (MXNet's ``SyncBatchNorm``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.trainers.torch_operators.call import Call


def normalise_batch_and_rectify(call: Call) -> Tensor:
    """Normalises a batch and applies ReLU (``_contrib_BatchNormWithReLU``)."""
    return functional.relu(normalise_batch(call))


def normalise_batch(call: Call) -> Tensor:
    """Normalises data ``[N,C,H,W]`` with gamma, beta, running mean and variance ``[C]``; the
    running statistics move in training unless ``use_global_stats``."""
    x, gamma, beta, mean, variance = call.inputs
    node = call.node
    if node.integer("axis", 1) % x.dim() != 1:
        raise call.refuse(f"axis {node.attrs['axis']}")
    if node.flag("fix_gamma", True):
        gamma = torch.ones_like(gamma)
    epsilon, momentum = node.number("eps", 1e-3), node.number("momentum", 0.9)
    if not call.training or node.flag("use_global_stats", False):
        return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)
    if not call.replicas.alone:
        here, spread = call.replicas.moments(x)
        with torch.no_grad():
            mean.lerp_(here.to(mean), 1 - momentum)
            variance.lerp_(spread.to(variance), 1 - momentum)
        scale = gamma.to(spread) * (spread + epsilon).rsqrt()
        centred = x.to(here) - _by_channel(here, x)
        return (centred * _by_channel(scale, x) + _by_channel(beta.to(here), x)).to(x.dtype)
    count = x.numel() // x.shape[1]
    if count == 1:
        # A pooled map of one image. PyTorch refuses it; MXNet answers beta.
        with torch.no_grad():
            mean.lerp_(x.reshape(mean.shape).to(mean), 1 - momentum)
            variance.mul_(momentum)
        return (x - x) * _by_channel(gamma, x).to(x) + _by_channel(beta, x).to(x)
    # The backward pass keeps what it was given, so the buffers themselves are written after it.
    moved = mean.clone(), variance.clone()
    result = functional.batch_norm(x, *moved, gamma, beta, True, 1 - momentum, epsilon)
    with torch.no_grad():
        mean.copy_(moved[0])
        # PyTorch has added the unbiased variance; MXNet adds the biased one.
        kept = momentum * variance
        variance.copy_(kept + (moved[1] - kept) * ((count - 1) / count))
    return result


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Returns ``[C]`` as ``[C,1,1]`` for a map."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


def normalise_instance(call: Call) -> Tensor:
    """Normalises every channel of every image by itself."""
    x, gamma, beta = call.inputs
    axes = tuple(range(2, x.dim()))
    normal = _normal(x, axes, call.node.number("eps", 1e-3))
    return normal * _by_channel(gamma, x) + _by_channel(beta, x)


def normalise_layer(call: Call) -> Tensor:
    """Normalises along one axis, the last unless another is named."""
    x, *affine = call.inputs
    axis = call.node.integer("axis", -1) % x.dim()
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    gamma, beta = (values.reshape(shape) for values in affine)
    return _normal(x, (axis,), call.node.number("eps", 1e-5)) * gamma + beta


def normalise_groups(call: Call) -> Tensor:
    """Normalises groups of channels, with a scale and a shift for each group."""
    x, gamma, beta = call.inputs
    grouped = x.reshape(x.shape[0], call.node.integer("num_groups", 1), -1)
    normal = _normal(grouped, (2,), call.node.number("eps", 1e-5))
    return (normal * gamma[:, None] + beta[:, None]).reshape(x.shape)


def _normal(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()


def normalise_length(call: Call) -> Tensor:
    """Divides by the length of an image, its channels or its positions (``L2Normalization``)."""
    x, mode = call.data, call.node.text("mode", "instance")
    axes = {"instance": range(1, x.dim()), "channel": (1,), "spatial": range(2, x.dim())}[mode]
    squares = x.square().sum(tuple(axes), keepdim=True)
    return x / (squares + call.node.number("eps", 1e-10)).sqrt()


def normalise_neighbours(call: Call) -> Tensor:
    """Normalises over neighbouring channels (``LRN``)."""
    node, size = call.node, call.node.integer("nsize", 1)
    if size % 2 == 0:
        raise call.refuse(f"an even number of channels, {size}")
    return functional.local_response_norm(
        call.data, size, node.number("alpha", 1e-4), node.number("beta", 0.75),
        node.number("knorm", 2),
    )  # fmt: skip
