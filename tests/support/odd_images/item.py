"""One file of the corpus of odd images, and the pictures that its files show."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
Duty: TypeAlias = Literal["decode", "refuse", "either"]


@dataclass(frozen=True)
class OddImage:
    """A file, and what may come of it.

    Args:
        name: unique; starts with the format in lower case.
        data: the whole file.
        duty: ``decode`` for what ordinary encoders write, ``refuse`` for files without one right
            answer; ``either`` for rare files: the right pixels, or an error that says why not.
        pixels: the right answer, uint8 ``[H,W,3]``, upright; None where Pillow is the reference.
        tolerance: the largest difference of a sample; 0 for lossless files.
        orientation: of EXIF, applied to Pillow's pixels; ``pixels`` are upright already.
        like: an ordinary file that shows the same, where Pillow refuses this one.
    """

    name: str
    data: bytes
    duty: Duty = "either"
    pixels: Pixels | None = None
    tolerance: int = 0
    orientation: int = 1
    like: bytes | None = None

    @property
    def format(self) -> str:
        return self.name.split()[0].upper()


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    """Gradients and a bright corner: smooth, without symmetry; another one for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        30 + 180 * x / max(width - 1, 1) + 3 * seed,
        220 - 170 * y / max(height - 1, 1) - 5 * seed,
        60 + 90 * x / max(width - 1, 1) + 80 * y / max(height - 1, 1),
    ]
    pixels = np.stack(planes, axis=-1)
    pixels[: height // 4, : width // 4] += 30
    shown: Pixels = pixels.clip(0, 255).astype(np.uint8)
    return shown


def noise(shape: tuple[int, ...], high: int, seed: int) -> npt.NDArray[np.uint16]:
    """Samples from 0 to ``high``, both included."""
    return np.random.default_rng(seed).integers(0, high + 1, shape).astype(np.uint16)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """What the EXIF standard says that each value means, written as array operations."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]


def tiff(orientation: int, order: str = "<", *, offset: int = 8, before: int = 0) -> bytes:
    """A TIFF block whose first directory has the orientation as its last entry.

    ``order`` is ``<`` or ``>``, ``offset`` where the directory lies, ``before`` the number of
    entries in front of the orientation.
    """
    entries = b"".join(struct.pack(order + "HHII", 0x0100 + k, 4, 1, 7 + k) for k in range(before))
    entries += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, offset)
    return head.ljust(offset, b"\0") + struct.pack(order + "H", before + 1) + entries + bytes(4)


def encoded(pixels: Pixels, format: str, **options: object) -> bytes:
    """The file that Pillow writes; 2, 3 or 4 channels as LA, RGB, RGBA, none as gray."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()
