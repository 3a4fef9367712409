"""Which parameters learn faster, and which decay: by the symbol's names, for every trainer."""

from __future__ import annotations

from dataclasses import dataclass

# GluonCV's own networks have theirs behind the ResNet's name.
BACKBONE_BLOCKS = (
    "conv1_", "layer1_", "layer2_", "layer3_", "layer4_", "batchnorm", "resnetv1",
)  # fmt: skip
# Names without the network's in front: Xception's are TensorFlow's, MSRA's ResNet's are Caffe's.
BACKBONE_NAMES = ("entry_flow_", "middle_flow_", "exit_flow_", "conv1_weight", "res", "bn")
DOUBLED = ("fc6_bias", "score_bias", "_offset_bias",
           *(f"fc1_c{number}_bias" for number in range(4)))  # fmt: skip
UNDECAYED = ("gamma", "beta", "bias")


@dataclass(frozen=True)
class ParameterGroup:
    """Factors on the run's learning rate and weight decay."""

    rate: float
    decay: float


def group_of(name: str, head_rate: float, no_decay: bool) -> ParameterGroup:
    """The group of parameter ``name`` (``icnet_layer1_block0_conv0_weight``).

    Everything outside the backbone learns at ``head_rate``, Caffe's biases twice as fast as their
    weights; with ``no_decay`` (``--no-wd``) biases and batch norm do not decay.
    """
    local = name.split("_", 1)[-1]
    backbone = local.startswith(BACKBONE_BLOCKS) or name.startswith(BACKBONE_NAMES)
    rate = (1.0 if backbone else head_rate) * (2.0 if name.endswith(DOUBLED) else 1.0)
    return ParameterGroup(rate, 0.0 if no_decay and name.endswith(UNDECAYED) else 1.0)
