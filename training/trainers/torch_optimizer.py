"""SGD or Adam over the groups of parameters that have rates and decays of their own."""

from __future__ import annotations

import torch

from training.options import TrainOptions
from training.parameter_groups import ParameterGroup, group_of
from training.trainers.symbol_module import SymbolModule


def make_optimizer(options: TrainOptions, module: SymbolModule) -> torch.optim.Optimizer:
    """Of all parameters that learn; each group keeps its multiplier as ``rate``."""
    o = options
    members: dict[ParameterGroup, list[torch.nn.Parameter]] = {}
    for name, weight in module.weights.items():
        if weight.requires_grad:
            members.setdefault(group_of(name, o.head_lr_mult, o.no_wd), []).append(weight)
    groups = [
        {"params": weights, "weight_decay": group.decay * o.weight_decay, "rate": group.rate}
        for group, weights in members.items()
    ]
    if o.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
    return torch.optim.Adam(groups, lr=o.lr)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
