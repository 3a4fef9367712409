"""Names the networks and their backbones, their losses, and the pixels each was trained on.

Needs no MXNet.
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
# Those that ``--aux`` gives a head on stage 3.
WITH_AUXILIARY = ("pspnet", "fcn", "deeplabv3")


def count_losses(model: str, aux: bool) -> int:
    """Maps with a loss: the prediction and ICNet's two auxiliary ones, or one where ``aux``."""
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
    """Blocks a stage, and whether they are bottlenecks (output four times as wide)."""

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
    """Returns the backbone of a network that was named without one."""
    return _OWN.get(model, _USUAL)


Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_BYTE: Triple = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class Pixels:
    """``mean`` and ``std`` are of RGB values from 0 to 1; ``bgr`` says that blue comes first."""

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    bgr: bool = False

    def __str__(self) -> str:
        numbers = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        named = next((name for name, pixels in PRESETS.items() if pixels == self), None)
        text = "{} mean {} std {}".format("BGR" if self.bgr else "RGB", *numbers)
        return text if named is None else f"{text} ({named})"


IMAGENET = Pixels()
_SIGNED = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _caffe(blue: float, green: float, red: float) -> Pixels:
    """Returns BGR bytes less their mean."""
    return Pixels((red / 255, green / 255, blue / 255), _BYTE, bgr=True)


# What ``--pixels`` names.
PRESETS: dict[str, Pixels] = {
    "imagenet": IMAGENET,
    "unit": Pixels((0, 0, 0), (1, 1, 1)),
    "byte": Pixels((0, 0, 0), _BYTE),
    "signed": _SIGNED,
    "caffe": _caffe(104.00698793, 116.66876762, 122.67891434),
}
PRESETS_HELP = (
    "imagenet (0 to 1, less ImageNet's mean, over its deviation), unit (0 to 1), byte (0 to 255),"
    " signed (-1 to 1) or caffe (BGR, 0 to 255, less ImageNet's mean)"
)

# Of each network as it is published; all others of ours see ImageNet's.
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


def find_preset(name: str) -> Pixels:
    """Returns what ``--pixels`` names. Raises ExportError for another name."""
    if name not in PRESETS:
        raise ExportError(f"--pixels {name} is not a valid name: expected {PRESETS_HELP}")
    return PRESETS[name]


def choose_pixels(
    known: Pixels | None,
    mean: Triple | str | None,
    std: Triple | str | None,
    bgr: bool | None,
    preset: str | None = None,
) -> Pixels:
    """Returns what was asked for; where parts of it were not, what the network is known to see.

    ``mean`` and ``std`` are three numbers (text: comma-separated), RGB, of values from 0 to 1;
    ``preset`` stands
    for both. Raises ExportError, also where nothing is known and too little was asked for.
    """
    if preset is not None:
        if mean is not None or std is not None:
            raise ExportError(f"--pixels {preset} stands for --mean and --std; leave them out")
        known = find_preset(preset)
    if known is None:
        if mean is None or std is None:
            raise ExportError(
                "nothing says what pixels the network was trained on: name them with --pixels"
                f" {PRESETS_HELP}, or with --mean and --std (and --bgr)"
            )
        known = IMAGENET  # its order of channels alone is left
    return Pixels(
        known.mean if mean is None else parse_triple("--mean", mean),
        known.std if std is None else parse_triple("--std", std, positive=True),
        known.bgr if bgr is None else bgr,
    )


def parse_triple(
    option: str, given: Triple | str, *, positive: bool = False, gray: bool = False
) -> Triple:
    """Returns three finite numbers, one a channel; a text separates them by commas or spaces.

    With ``gray`` one number stands for all three. Raises ExportError where they are not, or where
    one of them is not ``positive``.
    """
    parts = given.replace(",", " ").split() if isinstance(given, str) else list(given)
    if gray and len(parts) == 1:
        parts = parts * 3
    try:
        first, second, third = map(float, parts)
    except ValueError:
        first = second = third = math.nan
    if not math.isfinite(first + second + third) or (positive and min(first, second, third) <= 0):
        kind = "finite and above 0" if positive else "finite"
        one = ", or a single one for a gray network" if gray else ""
        raise ExportError(
            f"{option} {given!r} is not valid: expected three numbers, comma-separated, one for"
            f" each channel{one}, all {kind}"
        )
    return first, second, third
