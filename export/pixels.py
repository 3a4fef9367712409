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
# TensorFlow's Xception sees -1 to 1; mxnetgo's DeepLab BGR bytes less (104, 116, 122).
_DEEPLAB_MSRA = Pixels((122 / 255, 116 / 255, 104 / 255), _BYTE, bgr=True)
TRAINED_ON: dict[str, Pixels] = {
    "deeplabv3plus": Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deeplabplus": Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deeplab_msra": _DEEPLAB_MSRA,
    "deeplab_msra_dcn": _DEEPLAB_MSRA,
}


def choose_pixels(model: str | None, mean: str | None, std: str | None, bgr: bool | None) -> Pixels:
    """What was asked for; else what the named network was trained on; else ImageNet's.

    ``mean`` and ``std`` are three numbers by comma, RGB, of values from 0 to 1. Raises ExportError.
    """
    known = TRAINED_ON.get(model or "", IMAGENET)
    chosen = Pixels(
        known.mean if mean is None else _three("--mean", mean),
        known.std if std is None else _three("--std", std),
        known.bgr if bgr is None else bgr,
    )
    if min(chosen.std) <= 0:
        raise ExportError(f"--std {std}: each of the three must be above 0")
    return chosen


def _three(option: str, text: str) -> Triple:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise ExportError(
            f"{option} {text!r}: three numbers by comma, RGB, of values from 0 to 1"
        ) from None
    return red, green, blue
