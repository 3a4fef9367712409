"""What of a file reaches a decoder: the still image alone, of bounded work."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidImage, TooLarge
from serving.imaging import still as still_image
from serving.imaging.decode import check_still, decode, probe, read_still
from serving.settings import Settings
from tests.support.photos import LOSSY, PHOTO, encoded, exif, png_chunk, scene, turned

HEIGHT, WIDTH = scene().shape[:2]
HEAD = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in scene()))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def passed_on(data: bytes) -> bytes:
    return b"".join(read_still(data).parts)


def read(data: bytes, max_megapixels: float = 50) -> np.ndarray:
    return decode(data, max_megapixels=max_megapixels)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidImage) as error:
        read(data)
    return str(error.value)


def test_png_keeps_four_kinds_of_chunks() -> None:
    plain = png((b"IHDR", HEAD), (b"IDAT", ROWS), (b"IEND", b""))
    full = png(
        (b"IHDR", HEAD), (b"gAMA", b"\0\0\0\1"), (b"tRNS", bytes(6)), (b"acTL", bytes(8)),
        (b"fcTL", bytes(26)), (b"iCCP", b"x\0\0" + bytes(30)), (b"PLTE", bytes(9)),
        (b"IDAT", ROWS[:50]), (b"IDAT", ROWS[50:]), (b"fdAT", b"\0\0\0\2" + ROWS),
        (b"tEXt", b"a\0b"), (b"IEND", b""),
    )  # fmt: skip
    split = png((b"IHDR", HEAD), (b"IDAT", ROWS[:50]), (b"IDAT", ROWS[50:]), (b"IEND", b""))
    assert passed_on(full + b"\x7f\xff\xff\xffzTXt") == split
    assert np.array_equal(read(full), read(plain))


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        ([(b"IHDR", HEAD), (b"IDAT", ROWS[:9]), (b"tEXt", b"a"), (b"IDAT", ROWS[9:])], "together"),
        ([(b"IHDR", HEAD), (b"IHDR", HEAD), (b"IDAT", ROWS)], "IHDR"),
        ([(b"IHDR", HEAD), (b"CgBI", bytes(4)), (b"IDAT", ROWS)], "CgBI"),
        ([(b"IHDR", HEAD), (b"\0\0\0\0", b""), (b"IDAT", ROWS)], "without a name"),
        ([(b"IHDR", HEAD), (b"PLTE", bytes(3)), (b"PLTE", bytes(3)), (b"IDAT", ROWS)], "palette"),
        ([(b"IHDR", HEAD), (b"PLTE", bytes(4)), (b"IDAT", ROWS)], "palette"),
        ([(b"IHDR", HEAD[:9] + b"\3\0\0\0"), (b"IDAT", ROWS)], "no palette"),
        ([(b"IHDR", HEAD[:8] + b"\4\2\0\0\0"), (b"IDAT", ROWS)], "IHDR"),
        ([(b"IHDR", HEAD[:9] + b"\5\0\0\0"), (b"IDAT", ROWS)], "IHDR"),
        ([(b"IHDR", HEAD[:12] + b"\2"), (b"IDAT", ROWS)], "IHDR"),
        ([(b"IHDR", HEAD)], "no pixels"),
        ([(b"IHDR", struct.pack(">II", 5000, 5000) + HEAD[8:]), (b"IDAT", ROWS)], "too few bytes"),
    ],
)
def test_png_that_is_none(chunks: list[tuple[bytes, bytes]], why: str) -> None:
    assert why in refusal(png(*chunks, (b"IEND", b"")))


def test_png_has_the_colours_and_depths_of_its_standard() -> None:
    """ISO 15948, table 11.1: 15 of them."""
    legal = {(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4),
             (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)}  # fmt: skip
    found = set()
    for color in range(9):
        for depth in range(33):
            head = struct.pack(">IIBBBBB", 4, 4, depth, color, 0, 0, 0)
            palette = [(b"PLTE", bytes(3))] if color == 3 else []
            rows = zlib.compress(bytes(4 * (1 + 32)))
            data = png((b"IHDR", head), *palette, (b"IDAT", rows), (b"IEND", b""))
            with suppress(InvalidImage):
                read_still(data)
                found.add((color, depth))
    assert found == legal


@pytest.mark.parametrize("first", range(2, 9))
def test_the_first_exif_counts(first: int) -> None:
    """In every format that may hold several."""
    other = 1 + first % 8
    blocks = [exif(first)[6:], exif(other)[6:]]
    data = png((b"IHDR", HEAD), *((b"eXIf", block) for block in blocks), (b"IDAT", ROWS),
               (b"IEND", b""))  # fmt: skip
    assert np.array_equal(read(data), turned(scene(), first))
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block for block in blocks
    )
    plain = encoded(PHOTO, "JPEG")
    assert np.array_equal(read(b"\xff\xd8" + segments + plain[2:]), turned(read(plain), first))
    webp = encoded(PHOTO, "WEBP", lossless=True, exif=exif(first))
    second = b"EXIF" + struct.pack("<I", len(blocks[1])) + blocks[1] + b"\0" * (len(blocks[1]) % 2)
    webp = b"RIFF" + struct.pack("<I", len(webp) + len(second) - 8) + webp[8:] + second
    assert np.array_equal(read(webp), turned(scene(), first))


def test_jpeg_keeps_what_makes_the_picture() -> None:
    plain = LOSSY["jpeg"]
    comment = b"\xff\xfe\0\4ab" + b"\xff\xe2\0\x10ICC_PROFILE\0\1\1" + b"\xff\xe1\0\5xyz"
    data = plain[:2] + comment + plain[2:] + b"\xff\xd8 another image \xff\xd9"
    assert passed_on(data) == plain
    assert np.array_equal(read(data), read(plain))


@pytest.mark.parametrize("restart", [0, 1, 2])
def test_restart_intervals_are_passed_on(restart: int) -> None:
    """Without the segment that announces them a decoder would read them as damage."""
    data = encoded(PHOTO, "JPEG", restart_marker_blocks=restart)
    assert (b"\xff\xdd\0\4" in data) == bool(restart)
    assert passed_on(data) == data
    assert np.array_equal(read(data), read(encoded(PHOTO, "JPEG")))


def test_frames_of_other_codings_are_refused_by_name() -> None:
    """ITU T.81, table B.1: every frame that is not baseline, extended or progressive."""
    data = LOSSY["jpeg"]
    at = sof(data) + 1
    names = {"lossless": b"\xc3\xc7\xcb\xcf", "hierarchical": b"\xc5\xc6\xcd\xce",
             "arithmetic": b"\xc9\xca"}  # fmt: skip
    for name, codes in names.items():
        for code in codes:
            assert name in refusal(data[:at] + bytes([code]) + data[at + 1 :]), hex(code)
    # Segments that only such files have: arithmetic conditioning, hierarchical progression, EXP.
    for code, name in ((0xCC, "arithmetic"), (0xDE, "hierarchical"), (0xDF, "hierarchical")):
        segment = bytes([0xFF, code, 0, 3, 0])
        assert name in refusal(data[:2] + segment + data[2:]), hex(code)


def sof(data: bytes) -> int:
    return data.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d, k: d[:k] + d[k : k + 19] + d[k:], "twice"),
        (lambda d, k: d[: k + 4] + b"\x0c" + d[k + 5 :], "12 bits"),
        (lambda d, k: d[: k + 1] + b"\xc3" + d[k + 2 :], "lossless"),
        (lambda d, k: d[: k + 1] + b"\xc9" + d[k + 2 :], "arithmetic"),
        (lambda d, k: d[: k + 1] + b"\xc5" + d[k + 2 :], "hierarchical"),
        (lambda d, k: d[: k + 9] + b"\2" + d[k + 10 :], "2 components"),
        (lambda d, k: d[: k + 11] + b"\x50" + d[k + 12 :], "sampling"),
        (lambda d, k: d[: k + 10] + b"\x63" + d[k + 11 :], "components that it does not have"),
        (lambda d, k: d[:k] + b"\xff\xd8" + d[k:], "second image"),
        (lambda d, k: d[:k] + b"\xff\xe5\0\1" + d[k:], "shorter"),
        (lambda d, k: d[:k] + b"\xff\xbf\0\2" + d[k:], "FFBF"),
        (lambda d, k: d[: d.index(b"\xff\xda")] + b"\xff\xd9", "no scan"),
        (lambda d, k: d[:-2], "truncated"),
    ],
)
def test_jpeg_that_is_none(change, why: str) -> None:
    data = LOSSY["jpeg"]
    assert why in refusal(change(data, sof(data)))


def test_scans_cost_what_they_say() -> None:
    data = LOSSY["jpeg progressive"]
    scan = data[data.rindex(b"\xff\xda") : -2]
    megapixels = HEIGHT * WIDTH / 1e6
    assert read_still(data).scans == 10
    read(data, megapixels)
    more = data[:-2] + scan + b"\xff\xd9"
    with pytest.raises(TooLarge, match="11 scans"):
        read(more, megapixels)
    read(more, 2 * megapixels)
    assert "100 scans" in refusal(data[:-2] + scan * 91 + b"\xff\xd9")


def test_unusual_sampling_and_cmyk_are_decoded_too() -> None:
    """What TurboJPEG leaves out: OpenCV takes it."""
    data = encoded(PHOTO, "JPEG", subsampling=0)
    k = sof(data) + 11
    assert data[k] == 0x11
    odd = data[:k] + b"\x21" + data[k + 1 : k + 3] + b"\x21" + data[k + 4 :]
    assert not read_still(odd).is_common
    assert read(LOSSY["jpeg cmyk"]).shape == (HEIGHT, WIDTH, 3)
    assert not read_still(LOSSY["jpeg cmyk"]).is_common


def animated_webp(x: int, y: int, size: tuple[int, int] = (60, 50)) -> bytes:
    frame = encoded(PHOTO, "WEBP", lossless=True)[12:]
    frame += b"\0" * (len(frame) % 2)
    head = struct.pack("<HBHBHBHBHBB", x // 2, 0, y // 2, 0, WIDTH - 1, 0, HEIGHT - 1, 0, 9, 0, 0)
    body = b"ANIM" + struct.pack("<IIH", 6, 0xFFFFFFFF, 0)
    for _ in range(2):
        body += b"ANMF" + struct.pack("<I", len(head + frame)) + head + frame
    canvas = struct.pack("<B3xHBHB", 2, size[0] - 1, 0, size[1] - 1, 0)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + body
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_the_first_frame_of_a_webp_lies_on_its_black_canvas() -> None:
    expected = np.zeros((50, 60, 3), np.uint8)
    expected[8 : 8 + HEIGHT, 6 : 6 + WIDTH] = scene()
    data = animated_webp(6, 8)
    assert np.array_equal(read(data), expected)
    assert b"ANMF" not in passed_on(data)
    assert b"VP8X" not in passed_on(data)
    assert "leaves the canvas" in refusal(animated_webp(18, 8))


def test_webp_whose_sizes_disagree() -> None:
    plain = encoded(PHOTO, "WEBP", lossless=True)
    chunk = plain[12:]
    canvas = struct.pack("<B3xHBHB", 0, WIDTH, 0, HEIGHT - 1, 0)
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + chunk
    assert "disagree" in refusal(b"RIFF" + struct.pack("<I", len(body)) + body)
    # What is behind the container's own size is no part of it.
    assert np.array_equal(read(plain + b"VP8 junk" * 10), scene())


def bmp(bits: int, pixels: bytes, masks: tuple[int, ...] = (), height: int = 4) -> bytes:
    start = 54 + 4 * len(masks)
    head = struct.pack("<IiiHHIIiiII", 40, 4, height, 1, bits, 3 if masks else 0, 0, 0, 0, 0, 0)
    fields = b"".join(struct.pack("<I", mask) for mask in masks)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + head + fields + pixels


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0xF00, 0xF0, 0xF)),
        (16, (0xF, 0xF0, 0xF00)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
        (32, (0x3FF, 0xFFC00, 0x3FF00000)),
    ],
)
def test_bit_fields_of_any_order_and_width(bits: int, masks: tuple[int, int, int]) -> None:
    words = np.random.default_rng(0).integers(0, 1 << bits, (4, 4), np.uint64)
    stored = words.astype(f"<u{bits // 8}").tobytes()
    expected = np.zeros((4, 4, 3), np.uint8)
    for row in range(4):
        for column in range(4):
            for color, mask in enumerate(masks):
                low = (mask & -mask).bit_length() - 1
                value = (int(words[row, column]) & mask) >> low
                expected[3 - row, column, color] = value * 255 // (mask >> low)
    assert np.array_equal(read(bmp(bits, stored, masks)), expected)
    assert np.array_equal(read(bmp(bits, stored, masks, height=-4)), expected[::-1])


@pytest.mark.parametrize("masks", [(0xFF, 0xFF, 0xFF00), (0xF0F, 0xF0, 0xF000), (0, 1, 2)])
def test_bit_fields_that_describe_no_colours(masks: tuple[int, int, int]) -> None:
    assert "bit fields" in refusal(bmp(32, bytes(64), masks))


def test_a_bmp_that_is_shorter_than_its_rows() -> None:
    assert "truncated" in refusal(bmp(32, bytes(63)))


def worst(kind: str) -> bytes:
    """The largest work that a format makes of its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    image = Image.fromarray(np.tile(noise, (8, 8, 1)))
    options: dict[str, object] = {
        "progressive": {"progressive": True, "subsampling": 0, "exif": exif(6)},
        "cmyk": {"progressive": True, "exif": exif(6)},
        "png": {"compress_level": 1, "exif": exif(6)},
        "webp": {"lossless": True, "method": 0, "quality": 0, "exif": exif(6)},
        "bmp": {},
    }[kind]
    format = {"progressive": "JPEG", "cmyk": "JPEG"}.get(kind, kind.upper())
    return encoded(image.convert("CMYK") if kind == "cmyk" else image, format, **options)


@pytest.mark.parametrize("kind", ["progressive", "cmyk", "png", "webp", "bmp"])
def test_the_worst_legal_files_stay_within_the_memory_of_the_model(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder may map no more than the model says: with next to nothing beside the pixels."""
    from serving.imaging.decoder_pool import DecoderPool, Decoding

    monkeypatch.setattr(still_image, "FIXED_MEMORY_BYTES", 4 << 20)
    data = worst(kind)
    still = read_still(data)
    check_still(still, 100)
    pool = DecoderPool(Settings(decoder_processes=1), lambda reason: None)
    pool.start()
    try:
        pool.wait_ready()
        assert np.array_equal(pool.decode(still, Decoding()), read(data))
    finally:
        pool.close()


def test_probe_is_of_the_upright_canvas() -> None:
    header = probe(animated_webp(6, 8))
    assert (header.width, header.height, header.complete) == (60, 50, True)
    assert probe(io.BytesIO(LOSSY["jpeg"]).getbuffer()).width == WIDTH
