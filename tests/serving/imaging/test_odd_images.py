"""Odd images of the four formats: each shows what it should, or is refused with a reason.

1,500 files by ``tests/support/odd_images``. Lossless ones are compared with pixels that NumPy
computed, lossy ones with Pillow's. Every file is decoded in two child processes whose new memory is
filled differently: pixels that differ between the two were never written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from serving.errors import InvalidImage
from tests.support.decoding import Decoded, DecoderProcess, memory_checks
from tests.support.odd_images.corpus import corpus, of_format
from tests.support.odd_images.item import OddImage, scene, turned
from tests.support.odd_images.reference import by_pillow, largest_difference, right_answer

# For images of at most a hundredth of a megapixel; measured: under 20 ms and 12 MiB.
MAX_CPU_S, MAX_RESIDENT_BYTES, MAX_ADDRESS_BYTES = 5.0, 64 << 20, 512 << 20


@pytest.fixture(scope="module")
def decoders() -> Iterator[tuple[DecoderProcess, DecoderProcess]]:
    with (
        DecoderProcess(environment=memory_checks(0x55)) as one,
        DecoderProcess(environment=memory_checks(0xAA)) as other,
    ):
        yield one, other


@pytest.mark.parametrize("item", corpus(), ids=lambda item: item.name)
def test_an_odd_image_is_right_or_refused(
    item: OddImage, decoders: tuple[DecoderProcess, DecoderProcess]
) -> None:
    found, again = (decoder.decode(item.data) for decoder in decoders)
    assert found.kind in ("pixels", "refused"), f"{found.kind}: {found.text}"
    assert again.kind == found.kind, f"{again.kind}: {again.text}"
    check_cost(found)
    if found.pixels is None:
        assert item.duty != "decode", found.text
        names = (item.format, "MAX_IMAGE_MEGAPIXELS")
        assert any(name in found.text.upper() for name in names), found.text
        return
    assert again.pixels is not None
    assert largest_difference(again.pixels, found.pixels) == 0, "memory that was never written"
    assert item.duty != "refuse", "there is no right answer, and yet there was one"
    expected = right_answer(item)
    assert expected is not None, "Pillow refuses it, so nobody knows what it shows"
    assert largest_difference(found.pixels, expected) <= item.tolerance


def check_cost(found: Decoded) -> None:
    assert found.cpu_s <= MAX_CPU_S
    assert found.resident_bytes <= MAX_RESIDENT_BYTES
    assert found.address_bytes <= MAX_ADDRESS_BYTES


def test_there_are_many_files_and_all_formats_have_each_duty() -> None:
    names = Counter(item.name for item in corpus())
    assert max(names.values()) == 1
    assert len(names) >= 1500
    duties = Counter((item.format, item.duty) for item in corpus())
    for format in ("PNG", "BMP", "WEBP", "JPEG"):
        assert duties[format, "decode"] >= 60
        assert duties[format, "either"] >= 50
        assert duties[format, "refuse"] >= 20


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_ordinary_lossless_files_show_the_same_in_pillow(format: str) -> None:
    """So it is the decoder that is judged by them, not the generator."""
    for item in of_format(format):
        if item.duty != "decode" or item.pixels is None:
            continue
        found = by_pillow(item.data, item.orientation)
        if found is None:
            raise AssertionError(f"{item.name}: Pillow refuses it")
        if "orientation" in item.name or item.name == "webp everything":
            # Pillow leaves turning to its callers.
            assert sorted(found.ravel()) == sorted(item.pixels.ravel()), item.name
            continue
        # Pillow cuts 16 bits down to the upper eight.
        tolerance = max(item.tolerance, 1 if "16" in item.name or "colour 6" in item.name else 0)
        assert largest_difference(found, item.pixels) <= tolerance, item.name


def test_ordinary_jpegs_show_the_scene_in_pillow() -> None:
    """The files of the tests' own encoder are legal ones."""
    compared = 0
    for item in of_format("JPEG"):
        found = by_pillow(item.data, item.orientation)
        if item.duty != "decode" or "gray" in item.name or "Pillow 1 " in item.name:
            continue
        assert found is not None, item.name
        expected = turned(scene(30, 44), item.orientation)
        if found.shape == expected.shape:
            assert np.abs(found.astype(int) - expected).mean() < 4, item.name
            compared += 1
    assert compared > 80


@pytest.mark.parametrize(
    ("decoder", "kind"),
    [("crash", "crash"), ("hang", "hang"), ("raise_another_error", "wrong_error")],
)
def test_a_decoder_that_fails_is_found_out(decoder: str, kind: str) -> None:
    """What the other tests rely on: the process that decodes hides nothing."""
    good = of_format("PNG")[0].data
    with DecoderProcess(f"broken_decoders:{decoder}", wait_s=3) as process:
        assert process.decode(good).kind == kind
        assert process.decode(good).kind == kind


def test_memory_that_was_never_written_is_found_out() -> None:
    answers = []
    for perturb in (0x55, 0xAA):
        with DecoderProcess(
            "broken_decoders:leave_unwritten", environment=memory_checks(perturb)
        ) as process:
            answers.append(process.decode(b"any").pixels)
    if not memory_checks(1).get("LD_PRELOAD"):
        pytest.skip("this C library has no checks of its heap")
    assert largest_difference(*answers) > 0


def test_a_decoder_that_takes_memory_is_found_out() -> None:
    with DecoderProcess("broken_decoders:take_memory") as process:
        found = process.decode(b"any")
    assert found.kind == "refused"
    assert found.resident_bytes > MAX_RESIDENT_BYTES
    with pytest.raises(AssertionError):
        check_cost(found)


def test_errors_are_known_by_their_kind() -> None:
    with DecoderProcess("broken_decoders:refuse") as process:
        found = process.decode(b"any")
    assert (found.kind, found.text) == ("refused", f"{InvalidImage.__name__}: it is broken")
