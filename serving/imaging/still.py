"""The part of an image file that reaches a decoder, and what decoding it may cost.

The cost model. Before a decoder starts, all of this is known and bounded:

- bytes: the file is at most ``max_request_bytes`` long, and is walked once; more than
  ``MAX_SEGMENTS`` segments or chunks are refused. What is not part of the still image (animation,
  metadata, anything behind the image's end) is not passed on.
- pixels: at most ``max_image_megapixels``, of the canvas as well as of the frame in it.
- passes: a JPEG is decoded scan by scan, each over the whole image: at most ``MAX_SCANS`` of them,
  and scans x pixels at most ``MAX_PASSES`` times ``max_image_megapixels``. Every other format is
  decoded in one pass over pixels and bytes.
- bytes against pixels: a file that cannot hold the pixels that it claims is refused where the
  format sets a bound: deflate packs at most 1032 to 1 (PNG), BMP stores its rows.
- memory: :attr:`StillImage.memory_bytes` over all that a decoder allocates at a time, its output
  included. A decoder process gets this much address space for the image and no more.
- time: ``decode_timeout_s``, of the clock and of the processor.

Nothing here imports the server: decoder processes load this module.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEGMENTS = 20_000
MAX_SCANS = 100
MAX_PASSES = 10
# What decoders allocate whatever the image's size: tables, rows, Python's own objects.
FIXED_MEMORY_BYTES = 64 << 20
# Per pixel, beside the output of three bytes: OpenCV's own result (six for 16 bits a sample) and
# a copy turned by EXIF; libwebp's frame, alpha and prediction.
_EXTRA_BYTES_PER_PIXEL = {"JPEG": 8, "PNG": 12, "BMP": 4, "WEBP": 20}


class BrokenImage(ValueError):
    """An image that cannot be decoded; the text completes a sentence that starts "the image"."""


@dataclass(frozen=True)
class Frame:
    """The position of a picture on its canvas, in pixels: an animation's first frame may be
    smaller."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class StillImage:
    """One picture of a file, without whatever else the file holds.

    Attributes:
        format: JPEG, PNG, BMP or WEBP.
        width, height: of the canvas in pixels, as stored.
        orientation: EXIF's 1 to 8, to be applied to the canvas.
        parts: joined, a file of that format with this picture alone.
        complete: false for a file that ends too early.
        fault: why it cannot be decoded although its size is known; empty for a good one.
        scans: passes over the pixels.
        coefficient_bytes: what a JPEG of several scans keeps between them.
        is_common: whether a JPEG has components that libjpeg-turbo's own interface takes.
        frame: where the picture lies on its canvas; None where it fills it.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    parts: tuple[memoryview | bytes, ...] = ()
    complete: bool = True
    fault: str = ""
    scans: int = 1
    coefficient_bytes: int = 0
    is_common: bool = True
    frame: Frame | None = None

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def stream_bytes(self) -> int:
        """Returns the length of ``parts``."""
        return sum(len(part) for part in self.parts)

    @property
    def memory_bytes(self) -> int:
        """Returns the most memory that decoding takes at a time, output and file included."""
        per_pixel = 3 + _EXTRA_BYTES_PER_PIXEL[self.format]
        return (
            FIXED_MEMORY_BYTES
            + self.stream_bytes
            + self.coefficient_bytes
            + per_pixel * self.pixels
        )


def most_memory_bytes(max_megapixels: float, max_file_bytes: int) -> int:
    """Returns the largest ``memory_bytes`` of images within these limits: four components,
    turned."""
    per_pixel = 3 + max(_EXTRA_BYTES_PER_PIXEL.values())
    return FIXED_MEMORY_BYTES + max_file_bytes + int(per_pixel * max_megapixels * 1e6)


class Parts:
    """Collects stretches of one file; neighbours become one.

    Args:
        data: the file.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._stretches: list[list[int]] = []

    def add(self, start: int, end: int) -> None:
        """Keeps the bytes from ``start`` to before ``end``."""
        if self._stretches and self._stretches[-1][1] == start:
            self._stretches[-1][1] = end
        else:
            self._stretches.append([start, end])

    def views(self) -> tuple[memoryview, ...]:
        """Returns what was kept, in order, without copies."""
        return tuple(self._data[start:end] for start, end in self._stretches)
