"""Weights made elsewhere under this project's names, and the network that they belong to.

Sources: GluonCV's ``save_parameters`` (gluon-cv model_zoo/{icnet,pspnet,fcn,deeplabv3}.py), whose
names are those of the networks here; Fast_Seg's ICNet (``icnet_final.pth``; lxtGH/Fast_Seg
libs/models/ICNet.py and PSPNet.py); ICNet of liminn/ICNet-pytorch (models/icnet.py,
models/segbase.py) and of Ascend's ModelZoo (ICNet_ID1781_for_PyTorch), which has the same names;
TensorFlow DeepLab's V3+ on Xception-65 (tensorflow/models research/deeplab g3doc/model_zoo.md,
core/xception.py, model.py), published as xception65_{coco_voc_trainaug, coco_voc_trainval,
cityscapes_trainfine, ade20k_train}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.errors import WeightsError
from export.symbols.networks import BACKBONES
from export.weights.files import Arrays

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
    """Returns the ResNet that ``layer1.0.conv1.weight``, ... belong to. Raises WeightsError."""
    blocks = tuple(
        len({name.split(".")[1] for name in arrays if name.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in arrays
    for name, spec in BACKBONES.items():
        if spec.blocks == blocks and spec.bottleneck == bottleneck:
            return name
    raise WeightsError(
        f"stages of {blocks} blocks are not those of a known ResNet: expected those of"
        f" {', '.join(BACKBONES)}"
    )


def find_width(arrays: Arrays, stem: str, channels: int = STEM_CHANNELS) -> float:
    """Returns the channel multiplier: output channels of the first convolution over
    ``channels``."""
    return float(need(arrays, stem).shape[0] / channels)


def need(arrays: Arrays, name: str) -> npt.NDArray[np.generic]:
    """Returns the array of that name. Raises WeightsError where there is none."""
    if name not in arrays:
        some = ", ".join(sorted(arrays)[:3])
        raise WeightsError(
            f"{name} is missing, so these are weights of another network; they have {some}, ..."
        )
    return arrays[name]


def rename_batch_norms(arrays: Arrays) -> Arrays:
    """Renames batch norms' arrays from PyTorch to Gluon; convolutions' names stay."""
    norms = {name.rpartition(".")[0] for name in arrays if name.endswith(".running_mean")}
    renamed = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{layer}.{BATCH_NORM.get(kind, kind)}" if layer in norms else name] = array
    return renamed


def replace_start(name: str, starts: dict[str, str]) -> str:
    """Returns ``name`` with the first of ``starts`` that it begins with replaced."""
    for old, new in starts.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


GLUONCV_CLASSIFIERS = {"icnet": "head.conv_cls.weight"}
GLUONCV_CLASSIFIER = "head.block.4.weight"
# What only that network has.
GLUONCV_MARKS = {
    "icnet": "head.cff_12.conv_hign.0.weight",
    "pspnet": "head.psp.conv1.0.weight",
    "deeplabv3": "head.aspp.project.0.weight",
    "fcn": GLUONCV_CLASSIFIER,
}


def translate_gluoncv(arrays: Arrays) -> Translated:
    """Translates GluonCV's weights for the network that their names belong to.

    Raises WeightsError.
    """
    model = next((model for model, mark in GLUONCV_MARKS.items() if mark in arrays), None)
    if model is None:
        raise WeightsError(
            f"the names ({', '.join(sorted(arrays)[:3])}, ...) are not those of a GluonCV"
            " network: expected "
            f"a save_parameters file of {', '.join(GLUONCV_MARKS)}"
        )
    return Translated(
        model=model,
        backbone=find_backbone(arrays),
        classes=need(arrays, GLUONCV_CLASSIFIERS.get(model, GLUONCV_CLASSIFIER)).shape[0],
        arrays=arrays,
        width=find_width(arrays, "conv1.0.weight"),
        aux=any(name.startswith("auxlayer.") for name in arrays),
    )


FAST_SEG_STARTS = {
    "backbone.conv1.": "conv1.0.",
    "backbone.bn1.": "conv1.1.",
    "backbone.conv2.": "conv1.3.",
    "backbone.bn2.": "conv1.4.",
    "backbone.conv3.": "conv1.6.",
    "backbone.bn3.": "bn1.",
    **{f"backbone.head.stages.{i}.1.": f"psp_head.psp.conv{i + 1}.0." for i in range(4)},
    **{f"backbone.head.stages.{i}.2.": f"psp_head.psp.conv{i + 1}.1." for i in range(4)},
    "backbone.head.bottleneck.": "psp_head.block.",
    "backbone.": "",
}
FAST_SEG_BOTTLENECK = "psp_head.block.0.weight"


def translate_fast_seg(arrays: Arrays) -> Translated:
    """Translates Fast_Seg's weights for ``icnet_fast_seg``. Raises WeightsError."""
    renamed = {
        replace_start(name, FAST_SEG_STARTS).replace(".conv_high.", ".conv_hign."): array
        for name, array in rename_batch_norms(arrays).items()
    }
    weight = need(renamed, FAST_SEG_BOTTLENECK)
    # There the branches come before the map that they are made of, here behind it.
    own = weight.shape[1] // 2
    renamed[FAST_SEG_BOTTLENECK] = np.concatenate([weight[:, own:], weight[:, :own]], axis=1)
    return Translated(
        model="icnet_fast_seg",
        backbone=find_backbone(renamed),
        classes=need(renamed, "head.conv_cls.weight").shape[0],
        arrays=renamed,
        width=find_width(renamed, "conv1.0.weight"),
    )


LIMINN_BACKBONE = "pretrained."
# ImageNet's classifier, which the network never runs.
LIMINN_UNUSED = "pretrained.fc."


def translate_liminn(arrays: Arrays) -> Translated:
    """Translates liminn's weights for ``icnet_two_pass``. Raises WeightsError."""
    renamed = {
        name.removeprefix(LIMINN_BACKBONE).replace(".conv_high.", ".conv_hign."): array
        for name, array in rename_batch_norms(arrays).items()
        if not name.startswith(LIMINN_UNUSED)
    }
    classes = need(renamed, "head.conv_cls.weight").shape[0]
    return Translated(
        model="icnet_two_pass",
        backbone=find_backbone(renamed),
        classes=classes,
        arrays=renamed,
        width=find_width(renamed, "conv1.0.weight"),
    )


TF_BACKBONE = "xception_65/"
TF_ENDINGS = {
    "/BatchNorm/gamma": "_BN_gamma",
    "/BatchNorm/beta": "_BN_beta",
    "/BatchNorm/moving_mean": "_BN_running_mean",
    "/BatchNorm/moving_variance": "_BN_running_var",
    "/depthwise_weights": "_weight",
    "/weights": "_weight",
    "/biases": "_bias",
}
# Of convolutions over rows and columns; a depthwise one's last axis is 1.
TF_DEPTHWISE_AXES, TF_AXES = (2, 3, 0, 1), (3, 2, 0, 1)
TF_STEM_CHANNELS = 32
TF_UNUSED = ("global_step", "xception_65/logits/")


def translate_tf_deeplab(arrays: Arrays) -> Translated:
    """Translates TensorFlow's weights for ``deeplabv3plus``. Raises WeightsError."""
    renamed = {}
    for name, array in arrays.items():
        if name.startswith(TF_UNUSED):
            continue
        new = rename_tf_variable(name)
        if array.ndim == 4:
            depthwise = name.endswith("/depthwise_weights")
            axes = TF_DEPTHWISE_AXES if depthwise else TF_AXES
            array = np.ascontiguousarray(array.transpose(axes))
        renamed[new] = array
    return Translated(
        model="deeplabv3plus",
        backbone="xception65",
        classes=need(renamed, "logits_semantic_bias").shape[0],
        arrays=renamed,
        width=find_width(renamed, "entry_flow_conv1_1_weight", TF_STEM_CHANNELS),
    )


def rename_tf_variable(name: str) -> str:
    """Returns the symbol's name of a TensorFlow variable. Raises WeightsError."""
    for ending, new in TF_ENDINGS.items():
        if name.endswith(ending):
            stem = name.removesuffix(ending).removeprefix(TF_BACKBONE).removeprefix("decoder/")
            flow, _, rest = stem.partition("/")
            if flow in ("entry_flow", "exit_flow"):
                rest = rest.replace("/unit_1/xception_module", "")
            elif flow == "middle_flow":
                rest = rest.removeprefix("block1/").replace("/xception_module", "")
            return "_".join(filter(None, (flow, *rest.split("/")))) + new
    raise WeightsError(f"{name} is not a variable of TensorFlow's DeepLab V3+ on Xception-65")
