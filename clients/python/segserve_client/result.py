"""A label map with what is needed to show it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from segserve_client.description import Color

LabelMap: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
# As in the server's own PNGs: neither black nor any class.
IGNORE_COLOR: Color = (224, 224, 192)


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented image.

    Attributes:
        mask: class ids, uint8 ``[H,W]``; of models with more than 255 classes uint16.
        classes: names; ``classes[i]`` and ``palette[i]`` (RGB, 0-255) belong to id i.
        timings: seconds the server spent in each stage.
        model: the model that answered, and its ``version``.
        image_size: height and width of the image that was sent, after EXIF orientation.
        ignore_label: the id of pixels that belong to no class; outside of the mask's type's range:
            there are none.
        confidence: uint8 ``[H,W]``, 255 for certain, where it was asked for.
    """

    mask: LabelMap
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    timings: dict[str, float]
    model: str
    version: int
    image_size: tuple[int, int]
    ignore_label: int = 255
    confidence: npt.NDArray[np.uint8] | None = None

    def colored(self) -> npt.NDArray[np.uint8]:
        """The mask in its classes' colours, RGB uint8 ``[H,W,3]``."""
        return self._colors()[self.mask]

    def save(self, path: str | Path) -> None:
        """Writes an indexed PNG, whatever the suffix: pixel values are the class ids. A mask in
        uint16 is gray, in 16 bits: palettes end at 256 colours.

        Raises:
            OSError: the file cannot be written.
        """
        image = Image.fromarray(self.mask)
        if self.mask.dtype == np.uint8:
            image.putpalette(self._colors().tobytes())
        image.save(path, "PNG")

    def _colors(self) -> npt.NDArray[np.uint8]:
        colors = np.zeros((int(np.iinfo(self.mask.dtype).max) + 1, 3), np.uint8)
        if 0 <= self.ignore_label < len(colors):
            colors[self.ignore_label] = IGNORE_COLOR
        colors[: len(self.palette)] = np.array(self.palette, np.uint8).reshape(-1, 3)
        return colors


def decode_map(png: bytes) -> LabelMap:
    """The pixel values of an indexed or gray PNG, uint8 ``[H,W]``; in 16 bits uint16.

    Raises:
        ValueError: a PNG of another kind.
        OSError: no PNG at all.
    """
    try:
        # Image.open would refuse sizes that the server allows.
        with PngImageFile(io.BytesIO(png)) as image:
            if image.mode in ("I;16", "I;16B", "I"):
                return np.array(image).astype(np.uint16)
            if image.mode not in ("P", "L"):
                raise ValueError(f"a label map is an indexed or gray PNG, not {image.mode}")
            return np.array(image)
    except SyntaxError as error:  # Pillow's, for a file that is damaged or of another kind
        raise OSError(f"the answer is not a readable PNG: {error}") from None
