"""Defines what an operator is given, and what it raises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from export.symbols.graph import Node
from training.trainers.torch_replicas import ALONE, Replicas


class UnsupportedOperators(ValueError):
    """The symbol holds operators, or attributes of known ones, that are not executed here."""


@dataclass(frozen=True)
class Call:
    """One execution of ``node``: its inputs in the symbol's order; a label that nobody gave is
    missing at the end. Running statistics among the inputs are written in place; those of a batch
    are taken over ``replicas``. ``images`` are the network's, for operators without inputs."""

    node: Node
    inputs: tuple[Tensor, ...]
    training: bool
    replicas: Replicas = ALONE
    images: Tensor | None = None

    @property
    def data(self) -> Tensor:
        """Returns the first input."""
        return self.inputs[0]

    @property
    def like(self) -> Tensor:
        """Returns a tensor of the type and on the device that the outputs have."""
        if self.inputs:
            return self.inputs[0]
        return torch.zeros(()) if self.images is None else self.images

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs, the true batch in front."""
        return [tuple(tensor.shape) for tensor in self.inputs]

    def refuse(self, what: str) -> UnsupportedOperators:
        """Returns the error for an attribute that is not executed; it names the node."""
        return UnsupportedOperators(f"{self.node.name} ({self.node.op}): {what}")
