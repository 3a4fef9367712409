"""What pixel values a network was trained to see."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import ExportError

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
    """Returns what was asked for; else what the named network was trained on; else ImageNet's.

    ``mean`` and ``std`` are three numbers by comma, RGB, of values from 0 to 1. Raises ExportError.
    """
    known = pixels_of(model, backbone)
    chosen = Pixels(
        known.mean if mean is None else _three("--mean", mean),
        known.std if std is None else _three("--std", std),
        known.bgr if bgr is None else bgr,
    )
    if min(chosen.std) <= 0:
        raise ExportError(f"--std {std}: each of the three must be above 0")
    return chosen


def _three(option: str, given: Triple | str) -> Triple:
    values = given.split(",") if isinstance(given, str) else given
    try:
        red, green, blue = (float(part) for part in values)
    except ValueError:
        raise ExportError(
            f"{option} {given!r}: three numbers by comma, RGB, of values from 0 to 1"
        ) from None
    return red, green, blue
