"""What a learner reports of a step whose numbers are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.loader import Batch

# In the order in which a step computes them.
QUANTITIES = ("input", "parameter", "activation", "loss", "gradient", "running statistic")


@dataclass(frozen=True)
class Finding:
    """The first thing that is not finite.

    Attributes:
        quantity: ``input``, ``parameter``, ``activation`` (forward), ``loss``, ``gradient``
            (backward) or ``running statistic``.
        name: the symbol's: of the layer, or of the array.
    """

    quantity: str
    name: str

    def __str__(self) -> str:
        return f"{self.quantity} {self.name}"


class NonFiniteStep(ArithmeticError):
    """A step that was not taken: its loss, a gradient or a running statistic is not finite.

    Weights, momenta, averages and running statistics are those from before. ``batch`` is the whole
    one, of all processes.
    """

    def __init__(self, loss: float, finding: Finding, batch: Batch) -> None:
        super().__init__(f"loss {loss}, first not finite: {finding}")
        self.loss = loss
        self.finding = finding
        self.batch = batch


@dataclass(frozen=True)
class Symptoms:
    """Names, in the symbol's order, of arrays that were not finite when the step was stopped."""

    gradients: Sequence[str]
    statistics: Sequence[str]


def choose_finding(forward: Finding | None, loss_is_finite: bool, symptoms: Symptoms) -> Finding:
    """The first one in the order in which a step computes.

    Args:
        forward: what a second forward pass found, layer by layer; None: all is finite there.
    """
    if forward is not None:
        return forward
    if not loss_is_finite:
        return Finding("loss", "of finite logits")
    if symptoms.gradients:
        # The backward pass comes from the end.
        return Finding("gradient", symptoms.gradients[-1])
    if symptoms.statistics:
        return Finding("running statistic", symptoms.statistics[0])
    return Finding("gradient", "norm (every gradient by itself is finite)")


def first_finding(findings: Sequence[Finding], layers: Sequence[str]) -> Finding:
    """Of what several processes found; ``layers`` are names in the order of computation."""
    places = {name: index for index, name in enumerate(layers)}
    return min(findings, key=lambda f: (QUANTITIES.index(f.quantity), places.get(f.name, -1)))
