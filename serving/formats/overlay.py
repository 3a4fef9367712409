"""Draws the classes' colours over the photo, with a legend below where one is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from serving.errors import InvalidRequest
from serving.formats import png
from serving.formats.class_statistics import class_statistics
from serving.formats.label_map import Encoded, MaskOptions, MaskView
from serving.imaging.jit import compiled, read_only
from serving.palette import Color, LabelMap, label_type

Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg"}
DEFAULT_OPACITY = 0.5
DEFAULT_QUALITY = 90
LONGEST_JPEG = 65_500  # libjpeg's JPEG_MAX_DIMENSION


def write_overlay(view: MaskView, options: MaskOptions) -> Encoded:
    """Returns each class's colour with ``opacity`` over the photo; pixels of no class stay as they
    are.

    The legend lies below the picture, which it makes higher.

    Raises:
        InvalidRequest: too long a side for a JPEG.
        ValueError: no image, or not in the size of the labels.
    """
    if view.image is None or view.image.shape[:2] != view.labels.shape:
        raise ValueError("an overlay needs the image, in the size of the labels")
    opacity = DEFAULT_OPACITY if options.opacity is None else options.opacity
    jpeg = options.image == "jpeg"
    height, width = view.labels.shape
    legend = np.empty((0, width, 3), np.uint8)
    if options.legend:
        shares = class_statistics(view.labels, view.names)
        legend = draw_legend([(c.name, view.colors[c.id]) for c in shares if c.pixels], width)
    # OpenCV writes JPEGs from BGR: made in that order, not turned into it.
    picture = np.empty((height + len(legend), width, 3), np.uint8)
    blend(view.image, view.labels, view.colors, opacity, picture[:height], bgr=jpeg)
    picture[height:] = legend[..., ::-1] if jpeg else legend
    media_type = MEDIA_TYPES[options.image or "png"]
    if not jpeg:
        return Encoded(png.rgb(picture), media_type)
    if max(picture.shape) > LONGEST_JPEG:
        raise InvalidRequest(
            f"a JPEG has at most {LONGEST_JPEG} pixels a side, this overlay is "
            f"{picture.shape[0]}x{picture.shape[1]}; ask for image=png"
        )
    quality = DEFAULT_QUALITY if options.quality is None else options.quality
    _, body = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return Encoded(body.tobytes(), media_type)


def blend(
    image: Pixels,
    labels: LabelMap,
    colors: tuple[Color, ...],
    opacity: float,
    out: Pixels,
    *,
    bgr: bool = False,
) -> None:
    """Writes ``image``, RGB uint8 ``[H,W,3]``, with the classes' colours over it, rounded.

    Args:
        labels: ``[H,W]``; ids without a colour leave the image as it is.
        out: uint8 ``[H,W,3]``.
        bgr: the order of the channels in ``out``; RGB unless set.
    """
    # In 256ths: the photo's share, and the colour's with the half that rounds.
    ids = np.iinfo(labels.dtype).max + 1
    rest = np.full(ids, 256, np.uint32)
    rest[: len(colors)] -= round(256 * opacity)
    mixed = np.full((ids, 3), 128, np.uint32)
    shares = (256 - rest[: len(colors), None]).astype(np.uint32)
    mixed[: len(colors)] += shares * np.array(colors, np.uint32).reshape(-1, 3)
    red, blue = (2, 0) if bgr else (0, 2)
    _blend(read_only(image), read_only(labels), rest, mixed, red, blue, out)


def warm(classes: int = 2) -> None:
    """Compiles the loop of this format, so that no request waits for it."""
    pixel = np.zeros((1, 1, 3), np.uint8)
    labels = np.zeros((1, 1), label_type(classes))
    blend(pixel, labels, ((0, 0, 0),), 0.5, np.empty_like(pixel))


@compiled
def _blend(
    image: Pixels, labels: LabelMap, rest: Words, mixed: Words, red: int, blue: int, out: Pixels
) -> None:
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            kept = rest[label]
            out[y, x, red] = (image[y, x, 0] * kept + mixed[label, 0]) >> np.uint32(8)
            out[y, x, 1] = (image[y, x, 1] * kept + mixed[label, 1]) >> np.uint32(8)
            out[y, x, blue] = (image[y, x, 2] * kept + mixed[label, 2]) >> np.uint32(8)


BACKGROUND: Color = (255, 255, 255)
TEXT: Color = (0, 0, 0)
SMALLEST_FONT, LARGEST_FONT = 11, 40


def draw_legend(entries: Sequence[tuple[str, Color]], width: int) -> npt.NDArray[np.uint8]:
    """Draws a swatch and the name of each of ``entries``, in lines: RGB uint8 ``[h,width,3]``.

    Letters grow with the width. A name that is wider than the strip is cut off at its edge. No
    entries give no lines, ``h`` 0.
    """
    size = min(max(width // 60, SMALLEST_FONT), LARGEST_FONT)
    font = ImageFont.load_default(size)
    gap, line = size // 2, size * 7 // 4
    places: list[tuple[int, int]] = []
    left = row = 0
    for name, _ in entries:
        needed = gap + size + gap // 2 + round(font.getlength(name)) + gap
        if left and left + needed > width:
            left, row = 0, row + 1
        places.append((left + gap, row * line))
        left += needed
    height = (row + 1) * line if entries else 0
    strip = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        top = y + (line - size) // 2
        draw.rectangle((x, top, x + size - 1, top + size - 1), fill=color, outline=TEXT)
        draw.text((x + size + gap // 2, y + line // 2), name, fill=TEXT, font=font, anchor="lm")
    return np.asarray(strip, np.uint8).reshape(height, width, 3)
