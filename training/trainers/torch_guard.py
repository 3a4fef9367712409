"""Finds which of a step's numbers are not finite in PyTorch, and undoes the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.guard.guard import Finding, Symptoms
from training.trainers.symbol_module import SymbolModule
from training.trainers.torch_replicas import Replicas


class BeforeStep:
    """A copy of what a forward pass changes: running statistics, and the random state (dropout)."""

    def __init__(self, module: SymbolModule, device: torch.device) -> None:
        self.module = module
        self.device = device
        self.statistics = [state.clone() for state in module.buffers()]
        self.random = torch.get_rng_state()
        self.device_random = (
            torch.cuda.get_rng_state(device) if device.type == "cuda" else self.random
        )

    @torch.no_grad()
    def restore_statistics(self) -> None:
        for state, kept in zip(self.module.buffers(), self.statistics, strict=True):
            state.copy_(kept)

    def restore_random(self) -> None:
        torch.set_rng_state(self.random)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.device_random, self.device)


def gradient_norm(module: SymbolModule) -> Tensor:
    """Returns the norm of all gradients together; not finite if one of them is not, or if it
    overflows.
    """
    gradients = [weight.grad for weight in module.weights.values() if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


@dataclass(frozen=True)
class StepHealth:
    """The step's loss, and whether gradients and running statistics are finite; the same in all
    processes.
    """

    loss: float
    gradients: bool
    statistics: bool

    @property
    def loss_is_finite(self) -> bool:
        return math.isfinite(self.loss)

    @property
    def finite(self) -> bool:
        return self.loss_is_finite and self.gradients and self.statistics


def check_step(module: SymbolModule, loss: Tensor, norm: Tensor, replicas: Replicas) -> StepHealth:
    """Returns the step's health; ``loss`` is this process's, ``norm`` that of the gradients. Waits
    for the device once.
    """
    states = list(module.buffers())
    spread = torch.stack(torch._foreach_norm(states)).sum() if states else torch.zeros_like(norm)
    # What is not finite in one process is not in the sum.
    sums = replicas.sum(torch.stack([value.double() for value in (loss, norm, spread)])).tolist()
    return StepHealth(sums[0] / replicas.world, math.isfinite(sums[1]), math.isfinite(sums[2]))


def read_symptoms(module: SymbolModule) -> Symptoms:
    """Returns which gradients and running statistics are not finite now."""
    return Symptoms(
        [n for n, w in module.weights.items() if w.grad is not None and not _is_finite(w.grad)],
        [name for name, state in module.named_buffers() if not _is_finite(state)],
    )


def inspect_forward(
    module: SymbolModule,
    before: BeforeStep,
    images: npt.NDArray[np.float32],
    forward: Callable[[], object],
) -> Finding | None:
    """Returns the first array that is not finite up to the outputs; ``forward`` passes the batch
    again.

    Statistics are those from before it afterwards. Of several processes all have to call it, and
    all pass their rows, whatever they have found: batch norms may wait for each other.
    """
    found: list[Finding] = []
    if not np.isfinite(images).all():
        found.append(Finding("input", "data"))
    found += [Finding("parameter", n) for n, w in module.weights.items() if not _is_finite(w)]

    def watch(name: str, value: Tensor) -> None:
        if not found and not _is_finite(value):
            found.append(Finding("activation", name))

    module.watch = watch
    before.restore_random()
    try:
        with torch.no_grad():
            forward()
    finally:
        module.watch = None
        before.restore_statistics()
    return found[0] if found else None


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all().item())
