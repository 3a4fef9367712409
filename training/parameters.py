"""Decides how each parameter learns: frozen, faster in the head, with weight decay or not.

Parameters are chosen by their names, the same for every trainer. Freezing the first layers keeps
what a network learnt on ImageNet, as MSRA's and mxnetgo's ``fixed_param_prefix`` did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

# The beginnings of names, of a backbone's parts in their order. Of ResNet the stem and four stages:
# as the networks here name them, as GluonCV's published symbols do, and as Caffe.
STAGES = (1, 2, 3, 4)
RESNET = (
    ("conv1_", "batchnorm", "resnetv1s_conv", "resnetv1s_batchnorm", "bn_conv1_"),
    *(
        (f"layer{n}_", f"resnetv1s_layers{n}_", f"resnetv1s_down{n}_", f"res{n + 1}", f"bn{n + 1}")
        for n in STAGES
    ),
)
# Under TensorFlow's names; its parts are the stem, three blocks, the middle and the exit flow.
XCEPTION = (
    ("entry_flow_conv1_",),
    *((f"entry_flow_block{n}_",) for n in (1, 2, 3)),
    ("middle_flow_",),
    ("exit_flow_",),
)


def parse_freeze(text: str) -> tuple[str, ...]:
    """Returns the names of ``conv1,res2``, or the one number of parts of ``2``."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts) or (len(parts) > 1 and any(part.isdecimal() for part in parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of parts nor a list of names: expected for example 2 or "
            "conv1,layer1"
        )
    return parts


def frozen_names(names: Iterable[str], freeze: tuple[str, ...]) -> frozenset[str]:
    """Returns those of a network's parameters ``names`` that ``freeze`` selects.

    ``freeze`` is one number of parts (``"2"``: the stem and the first stage), or beginnings of
    names (``conv1``, ``layer1``), with or without the network's own in front (``icnet_layer1``).

    Raises:
        ValueError: a beginning that no name has, or more parts than there are.
    """
    names = tuple(names)
    if len(freeze) == 1 and freeze[0].isdecimal():
        freeze = _beginnings(names, int(freeze[0]))
    unknown = [start for start in freeze if not any(_begins(name, start) for name in names)]
    if unknown:
        raise ValueError(
            f"--freeze {','.join(unknown)}: no parameter has such a name: expected the start of "
            "one, such as "
            f"{', '.join(sorted(names)[:: max(1, len(names) // 6)])}"
        )
    return frozenset(name for name in names if any(_begins(name, start) for start in freeze))


def _beginnings(names: tuple[str, ...], depth: int) -> tuple[str, ...]:
    """Returns the names' starts of the first ``depth`` parts, as far as names have them."""
    parts = XCEPTION if any(_begins(name, XCEPTION[0][0]) for name in names) else RESNET
    if not 1 <= depth <= len(parts):
        raise ValueError(
            f"--freeze {depth}: expected 1 to {len(parts)}, the number of parts of this backbone"
        )
    found = [
        [start for start in part if any(_begins(name, start) for name in names)]
        for part in parts[:depth]
    ]
    if not all(found):
        raise ValueError(
            f"--freeze {depth}: the parts of this network are unknown; give the starts of its "
            "parameters' names"
        )
    return tuple(start for part in found for start in part)


def _begins(name: str, start: str) -> bool:
    return name.startswith(start) or name.split("_", 1)[-1].startswith(start)


# In GluonCV's own networks they follow the ResNet's name.
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
    """The factors on the run's learning rate and weight decay."""

    rate: float
    decay: float


def group_of(name: str, head_rate: float, no_decay: bool) -> ParameterGroup:
    """Returns the group of parameter ``name`` (``icnet_layer1_block0_conv0_weight``).

    Everything outside the backbone learns at ``head_rate``, Caffe's biases twice as fast as their
    weights; with ``no_decay`` (``--no-wd``) biases and batch norm do not decay.
    """
    local = name.split("_", 1)[-1]
    backbone = local.startswith(BACKBONE_BLOCKS) or name.startswith(BACKBONE_NAMES)
    rate = (1.0 if backbone else head_rate) * (2.0 if name.endswith(DOUBLED) else 1.0)
    return ParameterGroup(rate, 0.0 if no_decay and name.endswith(UNDECAYED) else 1.0)
