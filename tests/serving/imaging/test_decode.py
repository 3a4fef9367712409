import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.errors import InvalidImage, TooLarge, UnsupportedImageFormat
from serving.imaging.decode import DEFAULT_FORMATS, ImageHeader, decode, probe
from tests.support.photos import (
    HEIGHT,
    LOSSLESS,
    LOSSY,
    PHOTO,
    WIDTH,
    encoded,
    exif,
    interlaced_png,
    png_chunk,
    scene,
    sixteen_bit_png,
    turned,
)


def read(data, **options):
    options.setdefault("max_megapixels", 50)
    pixels = decode(data, **options)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    header = probe(data)
    assert (header.height, header.width) == pixels.shape[:2]
    return pixels


def by_pillow(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))


def png_of(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((png_chunk(b"IHDR", header), *chunks))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_are_read_exactly(kind):
    assert np.array_equal(read(LOSSLESS[kind]), by_pillow(LOSSLESS[kind]))


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_files_are_read_as_others_read_them(kind):
    difference = read(LOSSY[kind]).astype(int) - by_pillow(LOSSY[kind])
    assert np.abs(difference).max() <= 3


def test_alpha_is_dropped_not_blended():
    assert np.array_equal(read(LOSSLESS["png alpha"]), scene())
    assert np.array_equal(read(LOSSLESS["webp alpha"]), scene())


def test_interlaced():
    assert np.array_equal(read(interlaced_png()), scene())


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_divided_by_257_and_rounded(channels):
    expected = np.rint(scene(channels, np.uint16) / 257).astype(np.uint8)
    expected = np.stack([expected] * 3, axis=-1) if channels == 1 else expected[..., :3]
    assert np.array_equal(read(sixteen_bit_png(channels)), expected)


def test_every_sixteen_bit_value_is_rounded():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = cv2.imencode(".png", values)[1].tobytes()
    assert np.array_equal(read(data)[..., 1], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(format, orientation):
    options = {"lossless": True} if format == "WEBP" else {}
    plain = read(encoded(PHOTO, format, **options))
    data = encoded(PHOTO, format, exif=exif(orientation), **options)
    assert probe(data).orientation == orientation
    assert np.array_equal(read(data), turned(plain, orientation))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "width"), [(3, "H"), (4, "I")])
def test_exif_in_either_byte_order_and_width_and_after_the_pixels(order, kind, width):
    mark = b"II" if order == "<" else b"MM"
    entries = struct.pack(order + "HHII", 0x0100, 4, 1, 0)
    entries += struct.pack(order + "HHI" + width, 0x0112, kind, 1, 6).ljust(12, b"\0")
    tiff = mark + struct.pack(order + "HIH", 42, 8, 2) + entries + bytes(4)
    plain = LOSSLESS["png"]
    data = plain[:-12] + png_chunk(b"eXIf", tiff) + plain[-12:]
    assert np.array_equal(read(data), np.rot90(scene(), -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    assert read(encoded(PHOTO, "JPEG", exif=exif(value))).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "block", [b"", b"II", b"XX*\0\0\0\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*"]
)
def test_broken_exif_is_no_error(block):
    data = encoded(PHOTO, "JPEG", exif=b"Exif\0\0" + block)
    assert read(data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer(kind):
    assert np.array_equal(read(kind(LOSSLESS["png"])), scene())


ANIMATIONS = {
    "apng": encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)]),
    "webp": encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(180)], lossless=True),
}


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_the_first_frame_of_an_animation(kind):
    assert np.array_equal(read(ANIMATIONS[kind]), scene())


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_an_error(kind, part):
    data = {**LOSSLESS, **LOSSY}[kind]
    with pytest.raises(InvalidImage, match=r"truncated|broken"):
        decode(data[: int(len(data) * part)], max_megapixels=50)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted({**LOSSLESS, **LOSSY})), st.integers(1, 2000))
def test_no_cut_gives_a_half_image(kind, cut):
    data = {**LOSSLESS, **LOSSY}[kind]
    with pytest.raises(InvalidImage):
        decode(data[:-cut], max_megapixels=50)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted({**LOSSLESS, **LOSSY})), st.integers(0), st.integers(1, 255))
def test_a_flipped_byte_gives_an_image_or_a_clear_error(kind, position, change):
    data = bytearray({**LOSSLESS, **LOSSY}[kind])
    data[position % len(data)] ^= change
    try:
        pixels = decode(data, max_megapixels=1)
    except (InvalidImage, TooLarge, UnsupportedImageFormat):
        return
    header = probe(data)
    assert pixels.shape == (header.height, header.width, 3)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBPVP8X", b"BM"]),
    st.binary(max_size=100),
)
def test_any_bytes_give_a_clear_error(start, rest):
    with pytest.raises((InvalidImage, TooLarge, UnsupportedImageFormat)):
        decode(start + rest, max_megapixels=1)


def test_zero_bytes():
    with pytest.raises(InvalidImage, match="empty"):
        decode(b"", max_megapixels=50)


@pytest.mark.parametrize("text", [b"hello", b"BMW builds cars, not images", b"{}", b"P6 is a name"])
def test_text_is_no_image(text):
    with pytest.raises(InvalidImage, match=r"not a known image.*JPEG"):
        decode(text, max_megapixels=50)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "ICO", "PPM", "AVIF", "JPEG2000"])
def test_an_image_of_another_format_is_refused_with_the_allowed_ones(format):
    try:
        data = encoded(PHOTO, format)
    except (OSError, KeyError) as error:
        pytest.skip(f"Pillow here writes no {format}: {error}")
    with pytest.raises(UnsupportedImageFormat, match="BMP, JPEG, PNG, WEBP"):
        decode(data, max_megapixels=50)


def test_the_allowed_formats_can_be_fewer():
    only = frozenset({"JPEG"})
    read(LOSSY["jpeg"], formats=only)
    with pytest.raises(UnsupportedImageFormat, match="PNG images are not accepted; send JPEG"):
        decode(LOSSLESS["png"], max_megapixels=50, formats=only)
    with pytest.raises(ValueError, match="TIFF cannot be decoded"):
        decode(LOSSLESS["png"], max_megapixels=50, formats=DEFAULT_FORMATS | {"TIFF"})


def test_the_pixel_limit_holds_before_decoding():
    bomb = png_of(30000, 30000, png_chunk(b"IDAT", b""), png_chunk(b"IEND", b""))
    with pytest.raises(TooLarge, match=r"30000x30000.*max_image_megapixels = 50"):
        decode(bomb, max_megapixels=50)
    with pytest.raises(TooLarge):
        decode(png_of(30000, 30000), max_megapixels=50)


@pytest.mark.parametrize("kind", ["png", "bmp", "webp lossless", "jpeg", "webp"])
def test_the_pixel_limit_is_inclusive(kind):
    data = {**LOSSLESS, **LOSSY}[kind]
    limit = HEIGHT * WIDTH / 1e6
    read(data, max_megapixels=limit)
    with pytest.raises(TooLarge, match="max_image_megapixels"):
        decode(data, max_megapixels=limit * 0.999)


def test_more_pixels_than_pillow_would_warn_of():
    side = 9500  # 90 megapixels, above Pillow's own limit
    data = encoded(Image.new("L", (side, side)), "PNG", compress_level=1)
    assert decode(data, max_megapixels=100).shape == (side, side, 3)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_broken(size):
    with pytest.raises(InvalidImage, match="no pixels"):
        decode(png_of(*size), max_megapixels=50)


def test_bytes_after_the_image_are_ignored():
    for kind in ("jpeg", "png", "webp lossless"):
        data = {**LOSSLESS, **LOSSY}[kind]
        assert np.array_equal(read(data + b"trailer" * 20), read(data))


def test_a_thumbnail_s_end_is_not_the_image_s():
    thumbnail = encoded(PHOTO.resize((8, 8)), "JPEG")
    data = encoded(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)
    read(data)
    with pytest.raises(InvalidImage, match="truncated"):
        decode(data[: len(data) - 200], max_megapixels=50)


def test_a_file_of_tiny_segments_is_refused_quickly():
    marker = LOSSLESS["png"][8:33]
    many = {
        "PNG": b"\x89PNG\r\n\x1a\n" + marker + png_chunk(b"teXt", b"") * 150_000,
        "JPEG": b"\xff\xd8" + b"\xff\xe5\0\2" * 150_000,
        "WEBP": b"RIFF\xff\xff\xff\0WEBP" + b"VP8X\0\0\0\0" + b"abcd\0\0\0\0" * 150_000,
    }
    for format, data in many.items():
        with pytest.raises(InvalidImage, match=f"{format}.*segments"):
            decode(data, max_megapixels=1e9)
    for filler in (b"\xff", b"\xff\xd0", b"\0"):
        with pytest.raises(InvalidImage, match="truncated"):
            decode(b"\xff\xd8\xff" + filler * 1_000_000, max_megapixels=1e9)


def test_probe():
    assert probe(LOSSY["jpeg"]) == ImageHeader("JPEG", WIDTH, HEIGHT)
    upright = probe(encoded(PHOTO, "JPEG", exif=exif(6)))
    assert upright == ImageHeader("JPEG", HEIGHT, WIDTH, orientation=6)
    assert probe(png_of(123, 45)) == ImageHeader("PNG", 123, 45, complete=False)


def test_real_photos(pytestconfig):
    folder = pytestconfig.rootpath.parent / "shared" / "datasets" / "camvid" / "val" / "images"
    photos = sorted(folder.glob("*.jpg"))[:3]
    if not photos:
        pytest.skip("no CamVid sample beside this checkout")
    for photo in photos:
        data = photo.read_bytes()
        difference = read(data).astype(int) - by_pillow(data)
        assert np.abs(difference).max() <= 3
