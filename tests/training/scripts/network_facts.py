"""What the scripts that describe networks share. Needs MXNet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from export.mxnet_import import mx


def refusal(action: Callable[[], object]) -> str:
    """The message of the ValueError or FileNotFoundError that ``action`` raises."""
    try:
        action()
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    raise AssertionError("nothing was refused")


def vary_norms(network: mx.gluon.HybridBlock) -> None:
    """Batch norms that do something: neutral ones would hide a swapped parameter."""
    random = np.random.default_rng(5)
    for name, parameter in network.collect_params().items():
        if parameter.shape is not None and len(parameter.shape) == 1:
            low, high = (0.7, 1.3) if name.endswith(("gamma", "var")) else (-0.2, 0.2)
            parameter.set_data(mx.nd.array(random.uniform(low, high, parameter.shape)))


def shapes(network: mx.gluon.Block) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its structural name."""
    return {n: p.shape for n, p in network._collect_params_with_prefix().items()}


def differences(
    ours: mx.gluon.HybridBlock, theirs: mx.gluon.HybridBlock, image: mx.nd.NDArray
) -> dict[str, list[object]]:
    """Of each output of two networks: its shape, its largest value, their relative difference."""
    pairs = [(a.asnumpy(), b.asnumpy()) for a, b in zip(ours(image), theirs(image), strict=True)]
    return {
        "shapes": [a.shape for a, _ in pairs],
        "scale": [float(np.abs(b).max()) for _, b in pairs],
        "relative": [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs],
    }
