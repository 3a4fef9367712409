"""The photo with the classes' colours over it, as PNG or JPEG, with a legend below if wanted."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.forms import png
from serving.forms.legend import draw_legend
from serving.forms.mask_view import Encoded, MaskOptions, MaskView
from serving.jit import compiled, read_only
from serving.palette import Color

Pixels = npt.NDArray[np.uint8]

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg"}
DEFAULT_OPACITY = 0.5
DEFAULT_QUALITY = 90
LONGEST_JPEG = 65_500  # libjpeg's JPEG_MAX_DIMENSION


def write_overlay(view: MaskView, options: MaskOptions) -> Encoded:
    """Each class's colour with ``opacity`` over the photo; pixels of no class stay as they are.

    The legend lies below the picture, which it makes higher.

    Raises:
        InvalidRequest: too long a side for a JPEG.
        ValueError: no image, or not in the size of the labels.
    """
    if view.image is None or view.image.shape[:2] != view.labels.shape:
        raise ValueError("an overlay needs the image, in the size of the labels")
    opacity = DEFAULT_OPACITY if options.opacity is None else options.opacity
    picture = blend(view.image, view.labels, view.colors, opacity)
    if options.legend:
        present = np.flatnonzero(np.bincount(view.labels.reshape(-1), minlength=256))
        shown = [k for k in present.tolist() if k < len(view.names)]
        entries = [(view.names[k], view.colors[k]) for k in shown]
        picture = np.vstack([picture, draw_legend(entries, picture.shape[1])])
    media_type = MEDIA_TYPES[options.image or "png"]
    if options.image != "jpeg":
        return Encoded(png.rgb(picture), media_type)
    if max(picture.shape) > LONGEST_JPEG:
        raise InvalidRequest(
            f"a JPEG has at most {LONGEST_JPEG} pixels a side, this overlay is "
            f"{picture.shape[0]}x{picture.shape[1]}; ask for image=png"
        )
    quality = DEFAULT_QUALITY if options.quality is None else options.quality
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, body = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return Encoded(body.tobytes(), media_type)


def blend(image: Pixels, labels: Pixels, colors: tuple[Color, ...], opacity: float) -> Pixels:
    """``image``, RGB uint8 ``[H,W,3]``, with the classes' colours over it, rounded."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.array(colors, np.uint8).reshape(-1, 3)
    # In 256ths: shares for the colour where there is one.
    shares = np.zeros(256, np.uint16)
    shares[: len(colors)] = round(256 * opacity)
    return _blend(read_only(image), read_only(labels), table, shares)


def warm() -> None:
    """Compiles the loop of this form, so that no request waits for it."""
    blend(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), ((0, 0, 0),), 0.5)


@compiled
def _blend(image: Pixels, labels: Pixels, colors: Pixels, shares: npt.NDArray[np.uint16]) -> Pixels:
    height, width = labels.shape
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            share = np.uint32(shares[label])
            rest = np.uint32(256) - share
            for k in range(3):
                mixed = image[y, x, k] * rest + colors[label, k] * share + np.uint32(128)
                out[y, x, k] = mixed >> np.uint32(8)
    return out
