"""Holds what a server returns: descriptions of models, label maps, files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from segserve_client.proto import segserve_pb2 as pb

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Description:
    """A served model, as the server describes it.

    Attributes:
        classes: names; the index is the class id.
        palette: one RGB colour (0-255) for each class.
        ignore_label: the id of pixels that belong to no class.
        size: height and width of the network's input.
        has_logits: whether ``smooth`` and ``confidence`` are available.
        formats: output formats that ``Client.encode`` accepts.
    """

    model: str
    version: int
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_label: int
    size: tuple[int, int]
    has_logits: bool
    formats: tuple[str, ...]


def read_description(response: pb.DescribeResponse) -> Description:
    """Reads a response, in which colours are 0xRRGGBB."""
    return Description(
        model=response.model,
        version=response.version,
        classes=tuple(entry.name for entry in response.classes),
        palette=tuple(
            (entry.color >> 16 & 255, entry.color >> 8 & 255, entry.color & 255)
            for entry in response.classes
        ),
        ignore_label=response.ignore_label,
        size=(response.height, response.width),
        has_logits=response.has_logits,
        formats=tuple(response.formats),
    )


LabelMap: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
# As in the server's own PNGs: neither black nor any class.
IGNORE_COLOR: Color = (224, 224, 192)


@dataclass(frozen=True)
class File:
    """One file of a response: its bytes and media type."""

    body: bytes
    media_type: str


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented image.

    Attributes:
        mask: class ids, uint8 ``[H,W]``; of models with more than 255 classes uint16.
        classes: names; ``classes[i]`` and ``palette[i]`` (RGB, 0-255) belong to id i.
        timings: seconds the server spent in each stage.
        model: the model that answered, and its ``version``.
        image_size: height and width of the image that was sent, after EXIF orientation.
        ignore_label: the id of pixels that belong to no class; outside of the range of the mask's
            type there are none.
        confidence: uint8 ``[H,W]``, 255 for certain; None unless requested.
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
        """Returns the mask in its classes' colours, RGB uint8 ``[H,W,3]``."""
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
    """Returns the pixel values of an indexed or gray PNG, uint8 ``[H,W]``; of 16 bits, uint16.

    Raises:
        ValueError: a PNG of another kind.
        OSError: not a readable PNG.
    """
    try:
        # Image.open would refuse sizes that the server allows.
        with PngImageFile(io.BytesIO(png)) as image:
            if image.mode in ("I;16", "I;16B", "I"):
                return np.array(image).astype(np.uint16)
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"a PNG of mode {image.mode} is not a label map: expected 8-bit indexed or gray"
                )
            return np.array(image)
    except SyntaxError as error:  # Pillow's, for a file that is damaged or of another kind
        raise OSError(f"the response is not a readable PNG: {error}") from None
