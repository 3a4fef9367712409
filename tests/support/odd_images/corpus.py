"""Odd but mostly legal images of the four formats that are decoded, each with its right answer.

Everything is computed: no file is kept, and two runs give the same bytes (Pillow's own encoders
aside, which may change with its version).
"""

from __future__ import annotations

from functools import cache

from tests.support.odd_images.bmp import all_bmps
from tests.support.odd_images.item import OddImage
from tests.support.odd_images.jpeg import all_jpegs
from tests.support.odd_images.png import all_pngs
from tests.support.odd_images.webp import all_webps


@cache
def corpus() -> tuple[OddImage, ...]:
    """Every file, format by format."""
    return (*all_pngs(), *all_bmps(), *all_webps(), *all_jpegs())


def of_format(format: str) -> tuple[OddImage, ...]:
    """Those of ``PNG``, ``BMP``, ``WEBP`` or ``JPEG``."""
    return tuple(item for item in corpus() if item.format == format)
