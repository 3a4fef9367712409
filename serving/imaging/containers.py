"""Walks over JPEG, PNG and WebP files that find the one still image in each.

Every walk reads the file once, in a bounded number of steps, and keeps only what makes the
picture: no animation, metadata or colour profile reaches a decoder, and nothing behind the image's
own end. What a walk keeps is a valid file of the same format.

Nothing here imports the server: decoder processes load this package.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from serving.imaging.still import (
    MAX_SCANS,
    MAX_SEGMENTS,
    BrokenImage,
    Frame,
    Parts,
    StillImage,
)

# Bytes behind FF that are not a segment's marker: stuffed zeros, TEM, restarts, fill bytes.
_STANDS_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))
_IS_MARKER = np.array([code not in _STANDS_ALONE for code in range(256)])
_OTHER_JPEGS = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless coding"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE, 0xDE, 0xDF), "hierarchical coding"),
    **dict.fromkeys((0xC9, 0xCA, 0xCC), "arithmetic coding"),
}
# Sampling factors of the first of three components, the others having 1x1.
_COMMON_SAMPLING = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)})

# All coefficients; some encoders of baseline files write zeros for them.
_SEQUENTIAL_SCANS = (b"\0\x3f\0", b"\0\0\0")

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# Deflate's best is 258 bytes for two bits; libpng's rows may begin behind some empty blocks.
_DEFLATE_RATIO = 1032

_WEBP_ANIMATED = 0x02


def too_many() -> BrokenImage:
    return BrokenImage(f"is broken: it has over {MAX_SEGMENTS} segments")


def walk_jpeg(data: memoryview) -> StillImage:
    """Finds the first image of a JPEG file, up to its own EOI.

    Raises:
        BrokenImage: a variant that is not decoded here, or segments that contradict each other.
        EOFError, struct.error: the file ends before it says its size.
    """
    codes = np.frombuffer(data, np.uint8)
    parts = Parts(data)
    parts.add(0, 2)
    still: StillImage | None = None
    components: frozenset[int] = frozenset()
    is_sequential = False
    orientation = scans = 0
    position = 2
    for _ in range(MAX_SEGMENTS):
        start = _find_marker(codes, position)
        if start is None:
            return _end_jpeg(still, parts, orientation, scans, complete=False)
        marker = data[start + 1]
        if marker == 0xD9:
            parts.add(start, start + 2)
            return _end_jpeg(still, parts, orientation, scans, complete=True)
        if marker == 0xD8:
            raise BrokenImage("is broken: a second image starts inside it")
        if start + 4 > len(data):
            return _end_jpeg(still, parts, orientation, scans, complete=False)
        length = struct.unpack_from(">H", data, start + 2)[0]
        body, position = start + 4, start + 2 + length
        if length < 2:
            raise BrokenImage("is broken: a segment is shorter than its own length")
        if position > len(data):
            return _end_jpeg(still, parts, orientation, scans, complete=False)
        if marker in _OTHER_JPEGS:
            raise BrokenImage(f"uses {_OTHER_JPEGS[marker]}, which is not decoded here")
        if marker in (0xC0, 0xC1, 0xC2):
            if still is not None:
                raise BrokenImage("is broken: it states its size twice")
            still, components = _read_sof(data[body:position])
            is_sequential = marker != 0xC2
        elif marker == 0xDA:
            scans += 1
            if still is None or not _is_scan(data[body:position], components):
                raise BrokenImage("is broken: a scan names components that it does not have")
            if is_sequential and bytes(data[position - 3 : position]) not in _SEQUENTIAL_SCANS:
                raise BrokenImage("is broken: a sequential scan names part of the coefficients")
            if scans > MAX_SCANS:
                raise BrokenImage(f"has over {MAX_SCANS} scans, more than any encoder writes")
            # The scan's own bytes, up to the marker behind it.
            following = _find_marker(codes, position)
            end = len(data) if following is None else following
            parts.add(start, end)
            position = end
            continue
        elif marker == 0xE1:
            if not orientation and bytes(data[body : body + 6]) == b"Exif\0\0":
                orientation = read_orientation(data[body + 6 : position])
            continue
        elif marker == 0xE0 or marker == 0xEE:
            name = b"JFIF\0" if marker == 0xE0 else b"Adobe"
            if bytes(data[body : body + 5]) != name:
                continue
        elif 0xE2 <= marker <= 0xEF or marker in (0xFE, 0xDC):
            continue
        elif marker not in (0xC4, 0xDB, 0xDD):
            raise BrokenImage(f"is broken: it has a marker FF{marker:02X}")
        parts.add(start, position)
    raise too_many()


def _find_marker(codes: npt.NDArray[np.uint8], position: int) -> int | None:
    """Returns the index of the next FF with a marker behind it, by NumPy, which lets other threads
    run."""
    step, last = 256, len(codes) - 1
    while position < last:
        end = min(position + step, last)
        # In a scan nearly every FF has a stuffed zero behind it: those go first.
        behind = codes[position + 1 : end + 1]
        found = np.flatnonzero((codes[position:end] == 0xFF) & (behind != 0))
        if found.size:
            hits = found[_IS_MARKER[behind[found]]]
            if hits.size:
                return position + int(hits[0])
        position, step = end, min(4 * step, 1 << 18)
    return None


def _read_sof(body: memoryview) -> tuple[StillImage, frozenset[int]]:
    """Returns what a SOF segment says, and the names of its components."""
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8:
        raise BrokenImage(f"has {precision} bits a sample; JPEGs of 8 are decoded here")
    if count not in (1, 3, 4):
        raise BrokenImage(f"has {count} components; JPEGs of 1, 3 or 4 are decoded here")
    if len(body) != 6 + 3 * count:
        raise BrokenImage("is broken: its frame header has a wrong length")
    factors = [(body[7 + 3 * k] >> 4, body[7 + 3 * k] & 15) for k in range(count)]
    if any(not 1 <= factor <= 4 for pair in factors for factor in pair):
        raise BrokenImage("is broken: it has a sampling factor outside 1 to 4")
    most_h, most_v = (max(pair[axis] for pair in factors) for axis in (0, 1))
    mcus = -(-width // (8 * most_h)) * -(-height // (8 * most_v))
    still = StillImage(
        "JPEG",
        width,
        height,
        coefficient_bytes=128 * mcus * sum(h * v for h, v in factors),
        is_common=count == 1
        or (count == 3 and factors[0] in _COMMON_SAMPLING and factors[1:] == [(1, 1), (1, 1)]),
    )
    return still, frozenset(body[6 + 3 * k] for k in range(count))


def _is_scan(body: memoryview, components: frozenset[int]) -> bool:
    count = body[0] if body else 0
    return (
        1 <= count <= 4
        and len(body) == 4 + 2 * count
        and components.issuperset(body[1 + 2 * k] for k in range(count))
    )


def _end_jpeg(
    still: StillImage | None, parts: Parts, orientation: int, scans: int, *, complete: bool
) -> StillImage:
    if still is None:
        raise EOFError
    return replace(
        still,
        orientation=orientation or 1,
        parts=parts.views(),
        complete=complete,
        fault="" if scans else "is broken: it has no scan",
        scans=max(1, scans),
        coefficient_bytes=still.coefficient_bytes if scans > 1 else 0,
    )


def walk_png(data: memoryview) -> StillImage:
    """Finds the still image of a PNG file: what a viewer shows that knows no animations.

    Raises:
        BrokenImage: no legal header, an unknown critical chunk, or chunks out of order.
        struct.error: the file ends in its header.
    """
    length, kind, width, height, depth, color, packing, filtering, interlace = struct.unpack_from(
        ">I4sIIBBBBB", data, 8
    )
    if kind != b"IHDR" or length != 13:
        raise BrokenImage("is broken: it does not start with IHDR")
    if depth not in _PNG_DEPTHS.get(color, ()) or packing or filtering or interlace > 1:
        raise BrokenImage("is broken: IHDR has values that PNG does not have")
    if max(width, height) >= 1 << 31:
        # Zero and these are the sizes that PNG forbids; a limit of pixels would refuse them too.
        width, height = min(width, (1 << 31) - 1), min(height, (1 << 31) - 1)
    parts = Parts(data)
    parts.add(0, 33)
    packed_bytes = orientation = 0
    has_palette = ended_pixels = False
    still = StillImage("PNG", width, height, complete=False)
    position = 33
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            return replace(still, orientation=orientation or 1)
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            return replace(still, orientation=orientation or 1)
        if not kind.isalpha():
            raise BrokenImage("is broken: it has a chunk without a name")
        if kind == b"IDAT":
            if ended_pixels:
                raise BrokenImage("is broken: its IDAT chunks are not together")
            packed_bytes += length
            parts.add(position, end)
        else:
            ended_pixels = ended_pixels or packed_bytes > 0
            if kind == b"IEND":
                parts.add(position, end)
                fault = _png_fault(width, height, depth, color, packed_bytes, has_palette)
                return replace(
                    still,
                    orientation=orientation or 1,
                    parts=parts.views(),
                    complete=True,
                    fault=fault,
                )
            if kind == b"PLTE":
                if has_palette or ended_pixels or length % 3 or not 3 <= length <= 768:
                    raise BrokenImage("is broken: its palette is not one legal chunk before IDAT")
                if color in (0, 4):
                    raise BrokenImage("is broken: it is gray and has a palette")
                has_palette = True
                if color == 3:
                    parts.add(position, end)
            elif kind == b"eXIf":
                # A second one does not count.
                orientation = orientation or read_orientation(data[position + 8 : end - 4])
            elif kind[0] < 0x61:
                name = kind.decode("ascii")
                raise BrokenImage(f"has a critical chunk {name}, which is not known here")
        position = end
    raise too_many()


def _png_fault(
    width: int, height: int, depth: int, color: int, packed_bytes: int, has_palette: bool
) -> str:
    if not packed_bytes:
        return "is broken: it has no pixels' data"
    if color == 3 and not has_palette:
        return "is broken: it has no palette"
    least = width * height * depth * _PNG_CHANNELS[color] // 8
    if least > _DEFLATE_RATIO * packed_bytes + 1024:
        return "is broken: it has too few bytes for its pixels"
    return ""


def walk_webp(data: memoryview) -> StillImage:
    """Finds the still image of a WebP file, or the first frame of an animation.

    Raises:
        BrokenImage: chunks or sizes that contradict each other.
        struct.error: the file ends in its header.
    """
    riff_size = struct.unpack_from("<I", data, 4)[0]
    complete = riff_size + 8 <= len(data)
    # The container's own size bounds everything: what is behind it is not part of the file.
    data = data[: riff_size + 8]
    kind = bytes(data[12:16])
    still: StillImage | None = None
    if kind in (b"VP8 ", b"VP8L"):
        length = struct.unpack_from("<I", data, 16)[0]
        width, height = _bitstream_size(kind, data[20 : 20 + length])
        still = _still_webp(data[12 : 20 + length], width, height, complete)
        fault = "" if 20 + length <= len(data) else "is broken: its chunk leaves the file"
        return replace(still, fault=fault)
    if kind != b"VP8X":
        raise BrokenImage("is broken: it does not start with VP8, VP8L or VP8X")
    flags, low_w, high_w, low_h, high_h = struct.unpack_from("<B3xHBHB", data, 20)
    width, height = 1 + low_w + (high_w << 16), 1 + low_h + (high_h << 16)
    orientation = 0
    position = 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            break
        kind = bytes(data[position : position + 4])
        length = struct.unpack_from("<I", data, position + 4)[0]
        body, end = position + 8, position + 8 + length
        if end > len(data):
            complete = False
            break
        if kind == b"EXIF" and not orientation:
            exif = data[body:end]
            orientation = read_orientation(exif[6:] if bytes(exif[:6]) == b"Exif\0\0" else exif)
        elif still is not None:
            pass
        elif kind == b"ANMF" and flags & _WEBP_ANIMATED:
            still = _first_frame(data[body:end], width, height)
        elif kind in (b"VP8 ", b"VP8L") and not flags & _WEBP_ANIMATED:
            if _bitstream_size(kind, data[body:end]) != (width, height):
                raise BrokenImage("is broken: its headers disagree on the size")
            still = _still_webp(data[position:end], width, height, True)
        position = end + length % 2
    else:
        raise too_many()
    if still is None:
        fault = "is broken: it holds no picture" if complete else ""
        still = StillImage("WEBP", width, height, fault=fault)
    return replace(still, orientation=orientation or 1, complete=complete)


def _bitstream_size(kind: bytes, body: memoryview) -> tuple[int, int]:
    """Returns width and height by the bitstream's own header."""
    if kind == b"VP8 ":
        tag, start, width, height = struct.unpack_from("<B2x3sHH", body)
        if tag & 1 or start != b"\x9d\x01\x2a":
            raise BrokenImage("is broken: it has no key frame")
        return width & 0x3FFF, height & 0x3FFF
    signature, bits = struct.unpack_from("<BI", body)
    if signature != 0x2F or bits >> 29:
        raise BrokenImage("is broken: its lossless bitstream is not of version 0")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


def _still_webp(chunk: memoryview, width: int, height: int, complete: bool) -> StillImage:
    """Returns a file of one chunk; ``chunk`` is its head and body."""
    padding = b"\0" * (len(chunk) % 2)
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(chunk) + len(padding), b"WEBP")
    return StillImage("WEBP", width, height, parts=(head, chunk, padding), complete=complete)


def _first_frame(frame: memoryview, width: int, height: int) -> StillImage:
    """Returns the picture of an ANMF chunk, on its canvas of ``width`` and ``height``."""
    numbers = struct.unpack_from("<HBHBHBHB", frame)
    x, y, w, h = (numbers[2 * k] + (numbers[2 * k + 1] << 16) for k in range(4))
    place = Frame(2 * x, 2 * y, w + 1, h + 1)
    if place.x + place.width > width or place.y + place.height > height:
        raise BrokenImage("is broken: its first frame leaves the canvas")
    position = 16
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(frame):
            break
        kind = bytes(frame[position : position + 4])
        length = struct.unpack_from("<I", frame, position + 4)[0]
        end = position + 8 + length
        if end > len(frame):
            break
        if kind in (b"VP8 ", b"VP8L"):
            if _bitstream_size(kind, frame[position + 8 : end]) != (place.width, place.height):
                raise BrokenImage("is broken: its headers disagree on the size")
            return replace(
                _still_webp(frame[position:end], width, height, True),
                frame=None if (place.width, place.height) == (width, height) else place,
            )
        position = end + length % 2
    raise BrokenImage("is broken: its first frame holds no picture")


def read_orientation(exif: memoryview) -> int:
    """Returns tag 0x0112 of the first directory of a TIFF block; 1 where it is absent or broken."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None:
        return 1
    try:
        directory = struct.unpack_from(order + "I", exif, 4)[0]
        entries = struct.unpack_from(order + "H", exif, directory)[0]
        # A directory has some dozens of tags; the first of this kind counts.
        for k in range(min(entries, 512)):
            entry = directory + 2 + 12 * k
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112:
                width = {3: "H", 4: "I"}.get(kind, "B")
                value = int(struct.unpack_from(order + width, exif, entry + 8)[0])
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
