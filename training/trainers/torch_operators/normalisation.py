"""Batch normalisation with MXNet's running statistics: the variance is the biased one.

Over all processes where ``--syncbn`` is given (MXNet's ``SyncBatchNorm``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.trainers.torch_operators.call import Call


def normalise_batch(call: Call) -> Tensor:
    """Data ``[N,C,H,W]``, gamma, beta, running mean and variance ``[C]`` -> ``[N,C,H,W]``; the
    running statistics move in training unless ``use_global_stats``."""
    x, gamma, beta, mean, variance = call.inputs
    node = call.node
    if node.integer("axis", 1) != 1:
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
        centred = x.to(here) - here[:, None, None]
        return (centred * scale[:, None, None] + beta.to(here)[:, None, None]).to(x.dtype)
    count = x.numel() // x.shape[1]
    if count == 1:
        # A pooled map of one image. PyTorch refuses it; MXNet answers beta.
        with torch.no_grad():
            mean.lerp_(x.reshape(mean.shape).to(mean), 1 - momentum)
            variance.mul_(momentum)
        return (x - x) * gamma[:, None, None].to(x) + beta[:, None, None].to(x)
    # The backward pass keeps what it was given, so the buffers themselves are written after it.
    moved = mean.clone(), variance.clone()
    result = functional.batch_norm(x, *moved, gamma, beta, True, 1 - momentum, epsilon)
    with torch.no_grad():
        mean.copy_(moved[0])
        # PyTorch has added the unbiased variance; MXNet adds the biased one.
        kept = momentum * variance
        variance.copy_(kept + (moved[1] - kept) * ((count - 1) / count))
    return result
