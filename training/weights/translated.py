"""Weights under this project's names, and the network that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.backbones import BACKBONES
from training.weights.array_file import Arrays
from training.weights.errors import WeightsError

STEM_CHANNELS = 64
BATCH_NORM = {
    "weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var",
}  # fmt: skip


@dataclass(frozen=True)
class Translated:
    """A network of ``training.networks`` and its arrays, by structural or symbol's name."""

    model: str
    backbone: str
    classes: int
    arrays: Arrays
    width: float = 1.0
    aux: bool = False


Translate = Callable[[Arrays], Translated]
"""Renames the arrays of one source. Raises WeightsError where they are another network's."""


def find_backbone(arrays: Arrays) -> str:
    """The ResNet that ``layer1.0.conv1.weight``, ... belong to. Raises WeightsError."""
    blocks = tuple(
        len({name.split(".")[1] for name in arrays if name.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in arrays
    for name, spec in BACKBONES.items():
        if spec.blocks == blocks and spec.bottleneck == bottleneck:
            return name
    raise WeightsError(f"stages of {blocks} blocks are no ResNet that is known here")


def find_width(arrays: Arrays, stem: str, channels: int = STEM_CHANNELS) -> float:
    """The channel multiplier: output channels of the first convolution over ``channels``."""
    return float(need(arrays, stem).shape[0] / channels)


def need(arrays: Arrays, name: str):  # type: ignore[no-untyped-def]
    """The array of that name. Raises WeightsError where there is none."""
    if name not in arrays:
        some = ", ".join(sorted(arrays)[:3])
        raise WeightsError(
            f"{name} is missing, so these are weights of another network; they have {some}, ..."
        )
    return arrays[name]


def rename_batch_norms(arrays: Arrays) -> Arrays:
    """PyTorch's names of batch norms' arrays -> Gluon's; convolutions' names stay."""
    norms = {name.rpartition(".")[0] for name in arrays if name.endswith(".running_mean")}
    renamed = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{layer}.{BATCH_NORM.get(kind, kind)}" if layer in norms else name] = array
    return renamed


def replace_start(name: str, starts: dict[str, str]) -> str:
    """``name`` with the first of ``starts`` that it begins with replaced."""
    for old, new in starts.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name
