"""The names of the networks and their backbones, and the pixel values that each was trained to see.

MXNet is not needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.errors import ExportError

NETWORKS = (
    "icnet",
    "icnet_fast_seg",
    "icnet_two_pass",
    "icnet_paper",
    "pspnet",
    "fcn",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "deeplab_msra",
    "deeplab_msra_dcn",
)
# GluonCV's names.
MODEL_ALIASES = {"psp": "pspnet", "deeplab": "deeplabv3", "deeplabplus": "deeplabv3plus"}
# Those that have a head on stage 3 with ``--aux``.
WITH_AUXILIARY = ("pspnet", "fcn", "deeplabv3")


def count_losses(model: str, aux: bool) -> int:
    """Returns how many maps have a loss: the prediction, and ICNet's two others or ``aux``."""
    if model.startswith("icnet"):
        return 3
    return 2 if aux and model in WITH_AUXILIARY else 1


def legacy_loss_weights(model: str, losses: int) -> tuple[float, ...]:
    """Returns what acts on GluonCV's gradients: 1 for each term, whatever its weights say.

    Its ``SoftmaxOutput`` ignores the gradient that comes in. ICNet's first two terms are one map
    at two sizes, so its prediction counts twice.
    """
    return (2.0 if model.startswith("icnet") else 1.0, *(1.0,) * (losses - 1))


@dataclass(frozen=True)
class BackboneSpec:
    """A ResNet: its blocks a stage, and whether they are bottlenecks (outputs 4 times as wide)."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1


BACKBONES: dict[str, BackboneSpec] = {
    "resnet18": BackboneSpec((2, 2, 2, 2), bottleneck=False),
    "resnet34": BackboneSpec((3, 4, 6, 3), bottleneck=False),
    "resnet50": BackboneSpec((3, 4, 6, 3), bottleneck=True),
    "resnet101": BackboneSpec((3, 4, 23, 3), bottleneck=True),
    "resnet152": BackboneSpec((3, 8, 36, 3), bottleneck=True),
}
_USUAL = "resnet50"
# Of the networks, GluonCV's names for them too, that are published with another one.
_OWN = {
    "deeplabv3plus": "xception65",
    "deeplabplus": "xception65",
    "deeplabv2": "resnet101",
    "deeplab_msra": "resnet101",
    "deeplab_msra_dcn": "resnet101",
}


def default_backbone(model: str) -> str:
    """Returns the backbone of a network that is named without one."""
    return _OWN.get(model, _USUAL)


Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_BYTE: Triple = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class Pixels:
    """The values of pixels that a network was trained to see.

    ``mean`` and ``std`` are of RGB values from 0 to 1; ``bgr`` says that blue comes first.
    """

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    bgr: bool = False

    def __str__(self) -> str:
        numbers = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return "{} mean {} std {}".format("BGR" if self.bgr else "RGB", *numbers)


IMAGENET = Pixels()
_SIGNED = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _caffe(blue: float, green: float, red: float) -> Pixels:
    """Returns BGR bytes less their mean."""
    return Pixels((red / 255, green / 255, blue / 255), _BYTE, bgr=True)


# Of each network as it is published; all others see ImageNet's.
TRAINED_ON: dict[str, Pixels] = {
    "deeplab_msra": _caffe(104, 116, 122),
    "deeplab_msra_dcn": _caffe(104, 116, 122),
    "deeplabv2": _caffe(104.008, 116.669, 122.675),
    "icnet_fast_seg": _caffe(104.00698793, 116.66876762, 122.67891434),
    "icnet_paper": _caffe(103.939, 116.779, 123.68),
}
# TensorFlow's Xception sees -1 to 1, in DeepLabV3+ too.
SIGNED_BACKBONE = "xception65"
SIGNED_MODELS = ("deeplabv3plus", "deeplabplus")


def pixels_of(model: str | None, backbone: str | None = None) -> Pixels:
    """Returns what a network sees, in training and when it is served; DeepLabV3+ without a backbone
    has its usual one."""
    if model in SIGNED_MODELS and backbone in (None, SIGNED_BACKBONE):
        return _SIGNED
    return TRAINED_ON.get(model or "", IMAGENET)


def choose_pixels(
    model: str | None,
    mean: Triple | str | None,
    std: Triple | str | None,
    bgr: bool | None,
    backbone: str | None = None,
) -> Pixels:
    """Returns the requested pixels; else what the named network was trained on.

    ``mean`` and ``std`` are three numbers (text: comma-separated), RGB, of values from 0 to 1; None
    is the network's own, ImageNet's where it is not known. Raises ExportError.
    """
    known = pixels_of(model, backbone)
    return Pixels(
        known.mean if mean is None else parse_triple("--mean", mean),
        known.std if std is None else parse_triple("--std", std, positive=True),
        known.bgr if bgr is None else bgr,
    )


def parse_triple(option: str, given: Triple | str, *, positive: bool = False) -> Triple:
    """Returns three finite numbers, one a channel; a text separates them by commas or spaces.

    Raises ExportError where they are not, or where one of them is not ``positive``.
    """
    parts = given.replace(",", " ").split() if isinstance(given, str) else given
    try:
        first, second, third = map(float, parts)
    except ValueError:
        first = second = third = math.nan
    if not math.isfinite(first + second + third) or (positive and min(first, second, third) <= 0):
        kind = "finite and above 0" if positive else "finite"
        raise ExportError(
            f"{option} {given!r} is not valid: expected three numbers, comma-separated, one for"
            f" each channel, all {kind}"
        )
    return first, second, third
