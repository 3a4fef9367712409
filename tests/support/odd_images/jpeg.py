"""Odd JPEG files: sampling, colours, scans and markers that few cameras write."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.support.odd_images.item import Duty, OddImage, encoded, scene, tiff, turned
from tests.support.odd_images.jpeg_encoder import (
    Component,
    Plane,
    Scan,
    frame,
    quantised,
    scan,
    segment,
    tables,
)

# Decoders differ by a unit or two in the inverse cosine transform, upsampling and colours.
TOLERANCE = 3
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
HEIGHT, WIDTH, STEP = 30, 44, 3
FULL = ((1, 1), (1, 1), (1, 1))
SAMPLINGS = {
    "4:4:4": FULL,
    "4:2:2": ((2, 1), (1, 1), (1, 1)),
    "4:2:0": ((2, 2), (1, 1), (1, 1)),
    "4:1:1": ((4, 1), (1, 1), (1, 1)),
    "4:4:0": ((1, 2), (1, 1), (1, 1)),
    "4:4:1": ((1, 4), (1, 1), (1, 1)),
    "4:1:0": ((4, 2), (1, 1), (1, 1)),
    "3x1": ((3, 1), (1, 1), (1, 1)),
    "all 2x1": ((2, 1), (2, 1), (2, 1)),
    "2x2 2x1 1x2": ((2, 2), (2, 1), (1, 2)),
    "2x2 1x1 2x1": ((2, 2), (1, 1), (2, 1)),
    "3x2 2x1 fractions": ((3, 2), (2, 1), (1, 1)),
    "fine colours": ((1, 1), (2, 2), (1, 1)),
    "2x2 2x2 1x1": ((2, 1), (2, 1), (1, 1)),
}
ORDINARY = ("4:4:4", "4:2:2", "4:2:0", "4:1:1", "4:4:0")
EVERYTHING = (Scan((0, 1, 2)),)
SCRIPTS = {
    "spectral": (Scan((0, 1, 2), 0, 0), *(Scan((c,), 1, 63) for c in range(3))),
    "spectral in two": (
        Scan((0, 1, 2), 0, 0), *(Scan((c,), 1, 5) for c in range(3)),
        *(Scan((c,), 6, 63) for c in range(3)),
    ),
    "dc apart": (*(Scan((c,), 0, 0) for c in range(3)), *(Scan((c,), 1, 63) for c in range(3))),
    "bits": (
        Scan((0, 1, 2), 0, 0, 0, 1), Scan((0, 1, 2), 0, 0, 1, 0),
        *(Scan((c,), 1, 63, 0, 2) for c in range(3)), *(Scan((c,), 1, 63, 2, 1) for c in range(3)),
        *(Scan((c,), 1, 63, 1, 0) for c in range(3)),
    ),
    "many bits": (
        *(Scan((0, 1, 2), 0, 0, low + 1 if low < 5 else 0, low) for low in range(5, -1, -1)),
        *(Scan((c,), 1, 63, low + 1 if low < 5 else 0, low)
          for low in range(5, -1, -1) for c in range(3)),
    ),
    "colours last and coarse": (
        Scan((0, 1, 2), 0, 0), Scan((0,), 1, 9), Scan((0,), 10, 63), Scan((1,), 1, 63),
        Scan((2,), 1, 63),
    ),
    "a scan a coefficient": (
        Scan((0, 1, 2), 0, 0), *(Scan((c,), k, k) for k in range(1, 64) for c in range(3)),
    ),
}  # fmt: skip


def planes_of(height: int = HEIGHT, width: int = WIDTH) -> tuple[list[Plane], list[Plane]]:
    """The scene as R, G, B and as Y, Cb, Cr."""
    rgb = [plane.astype(float) for plane in np.moveaxis(scene(height, width), -1, 0)]
    red, green, blue = rgb
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return rgb, [luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128]


def jpeg(
    components: Sequence[Component],
    scans: Sequence[Scan] = EVERYTHING,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
    marker: int = 0xC0,
    head: bytes = JFIF,
    ids: Sequence[int] = (),
    restart: int = 0,
    step: int = STEP,
    bits: int = 8,
    between: bytes = b"",
    behind_frame: bytes = b"",
    wide: bool = False,
    end: bytes = EOI,
) -> bytes:
    """A whole file; ``head`` is behind SOI, ``between`` in front of every scan but the first."""
    parts = [SOI, head, tables(step, wide=wide)]
    parts.append(frame(components, height, width, marker, ids=ids, bits=bits))
    if restart:
        parts.append(segment(0xDD, struct.pack(">H", restart)))
    parts.append(behind_frame)
    for number, which in enumerate(scans):
        parts.append(between if number else b"")
        parts.append(scan(components, which, ids=ids, restart=restart, progressive=marker == 0xC2))
    return b"".join((*parts, end))


def photo(**options: Any) -> bytes:
    """The scene in 4:4:4, or with other markers around it."""
    return jpeg(quantised(planes_of()[1], FULL, STEP), **options)


def _of(
    name: str, data: bytes, duty: Duty = "either", orientation: int = 1, like: bytes | None = None
) -> OddImage:
    return OddImage(f"jpeg {name}", data, duty, None, TOLERANCE, orientation, like)


def samplings() -> Iterator[OddImage]:
    """Sampling factors in baseline, extended and progressive files, with and without restarts."""
    planes = planes_of()[1]
    for name, factors in SAMPLINGS.items():
        components = quantised(planes, factors, STEP)
        duty: Duty = "decode" if name in ORDINARY else "either"
        apart = tuple(Scan((c,)) for c in range(3))
        yield _of(f"{name} baseline", jpeg(components), duty)
        yield _of(f"{name} extended", jpeg(components, marker=0xC1), duty)
        yield _of(f"{name} scans apart", jpeg(components, apart), duty)
        for restart in (1, 3):
            yield _of(f"{name} restarts of {restart}", jpeg(components, restart=restart), duty)
        for script in ("spectral", "bits"):
            data = jpeg(components, SCRIPTS[script], marker=0xC2)
            yield _of(f"{name} progressive {script}", data, duty)
    for height, width in ((1, 1), (1, 9), (9, 1), (8, 8), (17, 33), (16, 16)):
        planes = planes_of(height, width)[1]
        for name in ("4:4:4", "4:2:0", "4:1:1"):
            components = quantised(planes, SAMPLINGS[name], STEP)
            data = jpeg(components, height=height, width=width)
            yield _of(f"{name} {height}x{width}", data, "decode")
        components = quantised(planes[:1], ((1, 1),), STEP)
        data = jpeg(components, (Scan((0,)),), height=height, width=width)
        yield _of(f"gray {height}x{width}", data, "decode")


def scripts() -> Iterator[OddImage]:
    """Progressive files of every scan script, with and without restarts, and of Pillow."""
    for name in ("4:4:4", "4:2:0"):
        components = quantised(planes_of()[1], SAMPLINGS[name], STEP)
        for script, scans in SCRIPTS.items():
            for restart in (0, 2):
                data = jpeg(components, scans, marker=0xC2, restart=restart)
                duty: Duty = "decode" if len(scans) < 20 else "either"
                yield _of(f"{name} script {script} restarts {restart}", data, duty)
    gray = quantised(planes_of()[1][:1], ((1, 1),), STEP)
    lone = (Scan((0,), 0, 0, 0, 1), Scan((0,), 1, 63, 0, 1), Scan((0,), 0, 0, 1, 0),
            Scan((0,), 1, 63, 1, 0))  # fmt: skip
    yield _of("gray progressive", jpeg(gray, lone, marker=0xC2), "decode")
    only_dc = (Scan((0, 1, 2), 0, 0),)
    components = quantised(planes_of()[1], FULL, STEP)
    yield _of("progressive of one scan", jpeg(components, only_dc, marker=0xC2))
    yield _of("progressive without colours", jpeg(components, (Scan((0,), 0, 0),), marker=0xC2))
    rough = SCRIPTS["bits"][:5]
    yield _of("progressive without last bits", jpeg(components, rough, marker=0xC2))
    for count in (30, 300, 3000):
        scans = (*SCRIPTS["bits"], *(SCRIPTS["bits"][-1:] * count))
        yield _of(f"last scan {count} times", jpeg(components, scans, marker=0xC2))
    twice = (Scan((0, 1, 2)), Scan((0, 1, 2)))
    yield _of("baseline scan twice", jpeg(components, twice))
    for quality in (1, 50, 95, 100):
        for options in ({}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}):
            data = encoded(scene(HEIGHT, WIDTH), "JPEG", quality=quality, **options)
            name = next(iter(options), "plain")
            yield _of(f"by Pillow {quality} {name}", data, "decode")
    for blocks in (1, 4):
        data = encoded(scene(40, 52), "JPEG", restart_marker_blocks=blocks)
        yield _of(f"by Pillow restarts {blocks}", data, "decode")


def colours() -> Iterator[OddImage]:
    """Gray, RGB, CMYK and YCCK with and without the markers that name them."""
    rgb, ycc = planes_of()
    black = np.linspace(255, 90, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    full = ((1, 1),) * 4

    def adobe(transform: int, version: int = 100) -> bytes:
        return segment(0xEE, b"Adobe" + struct.pack(">HHHB", version, 0, 0, transform))

    heads = {
        "no marker": b"",
        "JFIF": JFIF,
        "Adobe 0": adobe(0),
        "Adobe 1": adobe(1),
        "Adobe 2": adobe(2),
        "Adobe 9": adobe(9),
        "JFIF and Adobe 0": JFIF + adobe(0),
        "JFIF and Adobe 1": JFIF + adobe(1),
        "Adobe 0 and Adobe 1": adobe(0) + adobe(1),
        "Adobe 1 and Adobe 0": adobe(1) + adobe(0),
        "Adobe 0 version 101": adobe(0, 101),
        "Adobe too short": segment(0xEE, b"Adobe\0\x64"),
        "APP14 of others": segment(0xEE, b"Other\0\0\0\0\0\0\0"),
    }
    four = (Scan((0, 1, 2, 3)),)
    for name, head in heads.items():
        for kind, planes, ids in (
            ("ycc", ycc, ()),
            ("rgb", rgb, ()),
            ("rgb by name", rgb, b"RGB"),
            ("ids from 0", ycc, (0, 1, 2)),
            ("odd ids", ycc, (7, 99, 255)),
        ):
            components = quantised(planes, FULL, STEP)
            yield _of(f"{kind} {name}", jpeg(components, head=head, ids=ids))
        for kind, planes in (("cmyk", [*rgb, black]), ("ycck", [*ycc, black])):
            components = quantised(planes, full, STEP)
            yield _of(f"{kind} {name}", jpeg(components, four, head=head))
            data = jpeg(components, four, head=head, ids=b"CMYK")
            yield _of(f"{kind} by name {name}", data)
    small = quantised([*rgb, black], ((2, 2), (1, 1), (1, 1), (2, 2)), STEP)
    yield _of("ycck 4:2:0", jpeg(small, four, head=heads["Adobe 2"]))
    for across, down in ((1, 1), (2, 2), (4, 1), (1, 4), (3, 3)):
        gray = quantised(ycc[:1], ((across, down),), STEP)
        data = jpeg(gray, (Scan((0,)),))
        yield _of(
            f"gray sampled {across}x{down}", data, "decode" if across * down == 1 else "either"
        )
    two = quantised(ycc[:2], FULL[:2], STEP)
    yield _of("two components", jpeg(two, (Scan((0, 1)),)), "refuse")


def markers() -> Iterator[OddImage]:
    """Segments, fill bytes and data that do not belong to the picture."""
    thumbnail = encoded(scene(8, 8, 3), "JPEG")
    exif = b"Exif\0\0"
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='8'/>")
    wrapped = segment(0xE1, exif + tiff(1) + thumbnail)
    profile = b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([k, 3]) + bytes(2000)) for k in (1, 2, 3)
    )
    comment = segment(0xFE, b"made by hand \xff\xd9 \xff\xd8 \xff\xda")
    heads = {
        "no JFIF": b"",
        "JFIF twice": JFIF * 2,
        "JFIF with a thumbnail": segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\2\2" + bytes(12)),
        "JFXX": JFIF + segment(0xE0, b"JFXX\0\x10" + thumbnail),
        "thumbnail in EXIF": wrapped,
        "profile": JFIF + profile,
        "profile in the wrong order": JFIF + profile[2018 * 2 :] + profile[: 2018 * 2],
        "comment": JFIF + comment,
        "many comments": JFIF + comment * 300,
        "many empty segments": JFIF + segment(0xE1) * 900,
        "every APP": b"".join(segment(0xE0 + k, b"other" * k) for k in range(16)),
        "fill bytes": b"\xff" * 20 + JFIF + b"\xff" * 3,
        "xmp": JFIF + xmp,
        "restart marker in the head": JFIF + b"\xff\xd0",
        "TEM": JFIF + b"\xff\x01",
        "JPGn": JFIF + segment(0xF0, b"x"),
        "EXP": JFIF + segment(0xDF, b"\x11"),
        "DAC": JFIF + segment(0xCC, b"\0\x10"),
        "garbage between segments": JFIF + b"\0\1\2garbage",
        "unused tables": JFIF + segment(0xDB, b"\3" + bytes(range(1, 65))),
        "tables of 16 bits": b"",
        "DRI of 0": JFIF + segment(0xDD, b"\0\0"),
    }
    ordinary = (
        "no JFIF",
        "thumbnail in EXIF",
        "profile",
        "comment",
        "xmp",
        "JFIF with a thumbnail",
    )
    for name, head in heads.items():
        duty: Duty = "decode" if name in ordinary else "either"
        like = photo() if name == "TEM" else None
        data = photo(head=head, wide=name == "tables of 16 bits", marker=0xC1)
        yield _of(name, data, duty, like=like)
        if name not in ("tables of 16 bits", "fill bytes"):
            yield _of(f"behind the frame {name}", photo(behind_frame=head), like=like)
            components = quantised(planes_of()[1], FULL, STEP)
            data = jpeg(components, SCRIPTS["bits"], marker=0xC2, between=head)
            yield _of(f"between scans {name}", data, like=like)
    good = photo()
    for name, behind in {
        "a byte": b"x",
        "zeros": bytes(3000),
        "another picture": encoded(scene(20, 20, 5), "JPEG"),
        "another end": EOI * 3,
        "a scan": good[good.index(b"\xff\xda") :],
        "a frame": segment(0xC0, b"\x08\x40\0\x40\0\1\1\x11\0"),
    }.items():
        yield _of(f"{name} behind the end", good + behind, "decode")
    yield _of("fill bytes before the end", photo(end=b"\xff" * 40 + EOI))
    yield _of("zeros before the end", photo(end=bytes(40) + EOI))
    yield _of("a lost restart", _without_restart(0xD1))
    yield _of("restarts in the wrong order", _without_restart(0xD1, b"\xff\xd5"))
    text = good.replace(scan(quantised(planes_of()[1], FULL, STEP), EVERYTHING[0])[:14],
                        segment(0xDA, b"\3\1\0\2\0\3\0\0\0\0"))  # fmt: skip
    yield _of("spectral end of 0 in baseline", text)


def _without_restart(marker: int, instead: bytes = b"") -> bytes:
    data = photo(restart=2)
    start = data.index(b"\xff\xda")
    return data[:start] + data[start:].replace(bytes([0xFF, marker]), instead, 1)


def orientations() -> Iterator[OddImage]:
    """EXIF in both byte orders, at odd offsets, in odd segments."""
    for orientation in range(1, 9):
        for order in "<>":
            block = tiff(orientation, order, offset=8 + 3 * orientation, before=orientation % 4)
            exif = segment(0xE1, b"Exif\0\0" + block)
            yield _of(f"orientation {orientation} {order}", photo(head=exif), "decode", orientation)
            data = photo(behind_frame=exif)
            yield _of(f"orientation {orientation} {order} late", data, "either", orientation)
    first, second = (segment(0xE1, b"Exif\0\0" + tiff(value)) for value in (6, 3))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    yield _of("two EXIF", photo(head=JFIF + first + second), "either", 6)
    yield _of("EXIF behind xmp", photo(head=JFIF + xmp + first), "decode", 6)
    yield _of("EXIF behind empty APP1", photo(head=segment(0xE1) + first), "either", 6)
    broken = segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")
    yield _of("broken EXIF", photo(head=JFIF + broken))
    yield _of("EXIF of 9", photo(head=segment(0xE1, b"Exif\0\0" + tiff(9))))
    yield _of("EXIF of 0", photo(head=segment(0xE1, b"Exif\0\0" + tiff(0))))
    yield _of("EXIF without mark", photo(head=segment(0xE1, tiff(6))))
    behind = photo() + first
    yield _of("EXIF behind the end", behind, "decode")
    thumbnail = encoded(scene(8, 8, 3), "JPEG", exif=b"Exif\0\0" + tiff(3))
    wrapped = segment(0xE1, b"Exif\0\0" + tiff(8) + thumbnail)
    yield _of("EXIF in a thumbnail of EXIF", photo(head=wrapped), "decode", 8)


def refused() -> Iterator[OddImage]:
    """Files without one right answer, or of variants that are documented as not decoded."""
    planes = planes_of()[1]
    good, components = photo(), quantised(planes, FULL, STEP)
    start = good.index(b"\xff\xda")
    sof = good.index(b"\xff\xc0")
    deep = quantised([plane * 16 for plane in planes], FULL, STEP * 16, bits=12)
    dnl = segment(0xDC, struct.pack(">H", HEIGHT))
    no_tables = good.replace(tables(STEP)[:69], b"")
    for name, data in {
        "no end": good[:-2],
        "half": good[: (start + len(good)) // 2],
        "head alone": good[:start],
        "SOI alone": b"\xff\xd8\xff",
        "SOI and EOI": SOI + EOI,
        "12 bits": jpeg(deep, marker=0xC1, bits=12, step=STEP * 16 // 16, wide=True),
        "12 bits baseline": good[: sof + 4] + b"\x0c" + good[sof + 5 :],
        "height from DNL": photo(height=0, end=dnl + EOI),
        "no width": photo(width=0),
        "lossless": photo(marker=0xC3),
        "differential": photo(marker=0xC5),
        "hierarchical": photo(marker=0xCD),
        "lossless arithmetic": photo(marker=0xCB),
        "JPG": photo(marker=0xC8),
        "two frames": photo(behind_frame=frame(components, HEIGHT, WIDTH)),
        "another frame": photo(behind_frame=frame(components, 60, 88)),
        "no frame": good[:sof] + good[sof + 19 :],
        "scan of unknown component": good[: start + 5] + b"\x09" + good[start + 6 :],
        "scan of no component": good[: start + 4] + b"\0" + good[start + 5 :],
        "scan with a wrong length": good[: start + 2] + b"\0\x03" + good[start + 4 :],
        "segment beyond the file": good.replace(JFIF, b"\xff\xe0\xff\xff"),
        "no quantisation": no_tables,
        "sampling 0": photo().replace(b"\1\x11\0\2\x11\0\3\x11\0", b"\1\x01\0\2\x11\0\3\x11\0"),
        "sampling 5": photo().replace(b"\1\x11\0\2\x11\0\3\x11\0", b"\1\x51\0\2\x11\0\3\x11\0"),
        "too large an MCU": photo().replace(b"\1\x11\0\2\x11\0\3", b"\1\x44\0\2\x11\0\3"),
        "five components": photo().replace(b"\x08\0\x1e\0\x2c\3", b"\x08\0\x1e\0\x2c\5"),
        "no component": photo().replace(b"\x08\0\x1e\0\x2c\3", b"\x08\0\x1e\0\x2c\0"),
        "frame cut": good[: sof + 8],
    }.items():  # fmt: skip
        yield _of(name, data, "refuse")
    for length in (0, 1):
        # libjpeg reads it as 2.
        yield _of(f"segment of length {length}", good.replace(JFIF, bytes((0xFF, 0xE0, 0, length))))
    # A second height, or data that end early inside their bounds: as Pillow shows them, or not.
    yield _of("height told twice", photo(end=dnl + EOI))
    yield _of("no Huffman tables", good.replace(tables(STEP)[69:], b""))
    higher = good[: sof + 5] + struct.pack(">H", 90) + good[sof + 7 :]
    yield _of("more rows than its scan", higher)
    yield _of("arithmetic by Huffman", photo(marker=0xC9))
    yield _of("progressive told baseline", jpeg(components, SCRIPTS["bits"], marker=0xC0), "refuse")
    yield _of(
        "EXIF turned and cut", photo(head=segment(0xE1, b"Exif\0\0" + tiff(6)))[:-2], "refuse"
    )


def all_jpegs() -> Iterator[OddImage]:
    """The whole corpus of this format."""
    for part in (samplings, scripts, colours, markers, orientations, refused):
        yield from part()


__all__ = ["all_jpegs", "jpeg", "photo", "turned"]
