"""Files of the PyTorch trainer: MXNet's ``.params``, and the optimizer's states.

Each is written aside and renamed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch

from export.symbols.params import misfits, read_params, refuse_misfits, write_params
from training.trainers.symbol_module import SymbolModule
from training.trainers.torch_average import WeightAverage


def write_parameters(module: SymbolModule, path: Path) -> None:
    """As the module is now."""
    aside = _beside(path)
    write_params(module.parameters_of_symbol(), aside)
    os.replace(aside, path)


def read_parameters(module: SymbolModule, path: Path, partial: bool) -> tuple[str, ...]:
    """As ``training.learner.Learner.read_parameters``."""
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
    """Momenta, loss scale; with averages also what they are averages of."""
    states: dict[str, object] = {
        "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()
    }  # fmt: skip
    if average is not None:
        # The parameter file holds the averages: the weights themselves belong here.
        states["average_steps"] = average.steps
        states["weights"] = module.state_dict()
    # By way of memory: PyTorch's own writer does not say that a disk is full.
    content = io.BytesIO()
    torch.save(states, content)
    aside = _beside(path)
    aside.write_bytes(content.getbuffer())
    os.replace(aside, path)


def read_optimizer(
    path: Path,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    module: SymbolModule,
    average: WeightAverage | None,
) -> None:
    """What ``write_optimizer`` wrote."""
    device = next(module.parameters()).device
    states = torch.load(path, weights_only=True, map_location=device)
    optimizer.load_state_dict(states["optimizer"])
    scaler.load_state_dict(states["scaler"])
    if average is not None:
        average.steps = states["average_steps"]
        module.load_state_dict(states["weights"])


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".part")
