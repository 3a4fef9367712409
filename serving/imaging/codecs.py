"""One still image to RGB pixels, by the decoder that is chosen for its format.

Safety first, then speed (2048x1024 pixels on two AMD EPYC cores):

- JPEG: libjpeg-turbo through ``simplejpeg``. It writes straight into the output, checks the
  output's size, and has no code for animations or metadata. 5 ms; OpenCV's own libjpeg-turbo takes
  11 for the same pixels, bit for bit. OpenCV decodes what TurboJPEG does not turn into RGB:
  CMYK, and three components that are sampled in unusual ways.
- PNG: OpenCV (libpng), the one of the candidates that keeps all 16 bits of a sample. Its reader of
  animations is what has crashed; it runs for files with ``acTL``, which none has that comes here.
- WebP: OpenCV (libwebp), for the same reason: a file of one bitstream, never its animation reader.
- BMP: NumPy (:mod:`serving.imaging.bmp`).

Nothing here imports the server: decoder processes load this module.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from serving.imaging import bmp
from serving.imaging.still import BrokenImage, Frame, StillImage

_Bytes = npt.NDArray[np.uint8]

# round(sample / 257) in integers.
_EIGHT_BITS = ((np.arange(65536, dtype=np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_BAND_PIXELS = 1 << 16


def decode_still(still: StillImage, stream: memoryview, out: _Bytes) -> None:
    """Decodes one picture into ``out``, upright.

    Args:
        stream: ``still.parts``, joined.
        out: uint8 ``[H,W,3]`` RGB of the upright size, contiguous and zero.

    Raises:
        BrokenImage: the decoder refuses it.
        MemoryError: it takes more than there is.
    """
    is_upright = still.orientation == 1
    canvas = out if is_upright else np.zeros((still.height, still.width, 3), np.uint8)
    if still.format == "BMP":
        bmp.decode(stream, canvas)
    elif still.format == "JPEG" and still.is_common:
        _decode_jpeg(stream, canvas)
    else:
        frame = still.frame or Frame(0, 0, still.width, still.height)
        rows, columns = (
            slice(frame.y, frame.y + frame.height),
            slice(frame.x, frame.x + frame.width),
        )
        _decode_by_opencv(stream, canvas[rows, columns])
    if not is_upright:
        _turn(canvas, still.orientation, out)


def _decode_jpeg(stream: memoryview, out: _Bytes) -> None:
    try:
        pixels = simplejpeg.decode_jpeg(stream, "RGB", buffer=out, strict=False)
    except ValueError as error:
        text = str(error)
        if "memory" in text.lower():
            raise MemoryError from None
        raise BrokenImage(f"cannot be decoded: {text}") from None
    _check_shape(pixels.shape, out)


def _decode_by_opencv(stream: memoryview, out: _Bytes) -> None:
    try:
        pixels = cv2.imdecode(np.frombuffer(stream, np.uint8), _FLAGS)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        raise BrokenImage(f"cannot be decoded: {error.err}") from None
    if pixels is None:
        raise BrokenImage(
            "cannot be decoded: it is broken or truncated, or uses a rare variant of the format"
        )
    _check_shape(pixels.shape, out)
    if pixels.dtype != np.uint16:
        np.copyto(out, pixels, casting="no")
        return
    step = max(1, _BAND_PIXELS // out.shape[1])
    for start in range(0, len(out), step):
        out[start : start + step] = _EIGHT_BITS[pixels[start : start + step]]


def _check_shape(found: tuple[int, ...], out: _Bytes) -> None:
    if found != out.shape:
        raise BrokenImage("is broken: its headers disagree on the size")


def _turn(pixels: _Bytes, orientation: int, out: _Bytes) -> None:
    """Undoes an EXIF orientation, 2 to 8."""
    if orientation == 2:
        turned = cv2.flip(pixels, 1, dst=out)
    elif orientation == 3:
        turned = cv2.flip(pixels, -1, dst=out)
    elif orientation == 4:
        turned = cv2.flip(pixels, 0, dst=out)
    elif orientation == 5:
        turned = cv2.transpose(pixels, dst=out)
    elif orientation == 6:
        turned = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE, dst=out)
    elif orientation == 7:
        turned = cv2.flip(cv2.transpose(pixels), -1, dst=out)
    else:
        turned = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE, dst=out)
    if not np.shares_memory(turned, out):
        np.copyto(out, turned)
