"""A strip with the names and colours of classes, to put below a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from serving.palette import Color

BACKGROUND: Color = (255, 255, 255)
TEXT: Color = (0, 0, 0)
SMALLEST_FONT, LARGEST_FONT = 11, 40


def draw_legend(entries: Sequence[tuple[str, Color]], width: int) -> npt.NDArray[np.uint8]:
    """RGB uint8 ``[h,width,3]``: a swatch and the name of each of ``entries``, in lines.

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
