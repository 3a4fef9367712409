"""An exponential moving average of the weights: what is validated and served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from training.trainers.symbol_module import SymbolModule


class WeightAverage:
    """``average = decay * average + (1 - decay) * weight`` after each step, statistics too.

    Young averages move faster, ``(1 + steps) / (10 + steps)``, so that the random start fades.

    Source: Polyak and Juditsky, 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, module: SymbolModule, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: SymbolModule) -> None:
        """After a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        current = _tensors(module)
        torch._foreach_lerp_(
            list(self.values.values()), [current[name] for name in self.values], 1 - decay
        )

    @torch.no_grad()
    def restart(self, module: SymbolModule) -> None:
        """From the module's weights as they are now."""
        self.steps = 0
        for name, tensor in _tensors(module).items():
            self.values[name].copy_(tensor)

    @torch.no_grad()
    def swap(self, module: SymbolModule) -> None:
        """Exchanges the module's weights and the averages; a second call undoes it."""
        for name, tensor in _tensors(module).items():
            kept = tensor.clone()
            tensor.copy_(self.values[name])
            self.values[name].copy_(kept)

    @contextmanager
    def swapped(self, module: SymbolModule) -> Iterator[None]:
        """The module has the averages inside the ``with``."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)


def _tensors(module: SymbolModule) -> dict[str, Tensor]:
    """Weights and running statistics by the symbol's names."""
    return {name: w.detach() for name, w in module.weights.items()} | dict(module.named_buffers())
