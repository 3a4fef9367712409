"""The PyTorch trainer's states: averaged weights, MXNet's ``.params``, the optimizer's file.

Files are written aside and renamed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from export.symbols.params import misfits, read_params, refuse_misfits, write_params
from training.runs.checkpoint import replacing
from training.trainers.symbol_module import SymbolModule


class WeightAverage:
    """An exponential moving average of weights and statistics, which is validated and served:
    ``average = decay * average + (1 - decay) * weight`` after each step.

    Young averages move faster, ``(1 + steps) / (10 + steps)``, so that the random start fades.

    Source: Polyak and Juditsky, 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, module: SymbolModule, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}

    @torch.no_grad()
    def update(self, module: SymbolModule) -> None:
        """Averages the module's weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        current = _tensors(module)
        torch._foreach_lerp_(
            list(self.values.values()), [current[name] for name in self.values], 1 - decay
        )

    @torch.no_grad()
    def restart(self, module: SymbolModule) -> None:
        """Starts again from the module's present weights."""
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
        """Gives the module the averages inside the ``with``."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)


def _tensors(module: SymbolModule) -> dict[str, Tensor]:
    """Returns weights and running statistics by the symbol's names."""
    return {name: w.detach() for name, w in module.weights.items()} | dict(module.named_buffers())


def write_parameters(module: SymbolModule, path: Path) -> None:
    """Writes the module's present parameters."""
    with replacing(path) as aside:
        write_params(module.parameters_of_symbol(), aside)


def read_parameters(module: SymbolModule, path: Path, partial: bool) -> tuple[str, ...]:
    """Loads parameters; see ``training.trainers.Learner.read_parameters``."""
    if not path.is_file():
        raise FileNotFoundError(f"no parameters at {path}")
    parameters = read_params(path)
    names = [*module.weights, *dict(module.named_buffers())]
    shapes = {name: tuple(module.variable(name).shape) for name in names}
    problems = misfits(shapes, {name: parameters.find(name) for name in names})
    refuse_misfits(problems, len(names), path, partial)
    with torch.no_grad():
        for name in names:
            if name not in problems:
                module.variable(name).copy_(torch.tensor(parameters.find(name)))
    return tuple(problems)


def write_optimizer(
    path: Path,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    module: SymbolModule,
    average: WeightAverage | None,
) -> None:
    """Writes momenta and loss scale; with averages also the weights that they are averages of."""
    states: dict[str, object] = {
        "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()
    }  # fmt: skip
    if average is not None:
        # The parameter file has the averages: the weights themselves belong here.
        states["average_steps"] = average.steps
        states["weights"] = module.state_dict()
    # By way of memory: PyTorch's own writer does not say that a disk is full.
    content = io.BytesIO()
    torch.save(states, content)
    with replacing(path) as aside:
        aside.write_bytes(content.getbuffer())


def read_optimizer(
    path: Path,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    module: SymbolModule,
    average: WeightAverage | None,
) -> None:
    """Loads what ``write_optimizer`` wrote."""
    device = next(module.parameters()).device
    states = torch.load(path, weights_only=True, map_location=device)
    optimizer.load_state_dict(states["optimizer"])
    scaler.load_state_dict(states["scaler"])
    if average is not None:
        average.steps = states["average_steps"]
        module.load_state_dict(states["weights"])
