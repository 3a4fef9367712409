"""Which parameters learn faster, and which decay: by the symbol's names, for every trainer."""

from __future__ import annotations

from dataclasses import dataclass

BACKBONE_BLOCKS = ("conv1_", "layer1_", "layer2_", "layer3_", "layer4_", "batchnorm")
UNDECAYED = ("gamma", "beta", "bias")


@dataclass(frozen=True)
class ParameterGroup:
    """Factors on the run's learning rate and weight decay."""

    rate: float
    decay: float


def group_of(name: str, head_rate: float, no_decay: bool) -> ParameterGroup:
    """The group of parameter ``name`` (``icnet_layer1_block0_conv0_weight``).

    Everything outside the backbone learns at ``head_rate``; with ``no_decay`` (``--no-wd``)
    biases and batch norm do not decay.
    """
    local = name.split("_", 1)[-1]
    rate = 1.0 if local.startswith(BACKBONE_BLOCKS) else head_rate
    return ParameterGroup(rate, 0.0 if no_decay and name.endswith(UNDECAYED) else 1.0)
