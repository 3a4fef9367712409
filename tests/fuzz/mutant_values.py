"""What mutants of requests are made of: words and numbers that mean something to the server."""

from __future__ import annotations

import json
import random
from typing import TypeAlias

from tests.support.band_model import MODEL_SIZE, bands, encode

HEIGHT, WIDTH = MODEL_SIZE.height, MODEL_SIZE.width
PIXELS = bands(HEIGHT, WIDTH).tobytes()
IMAGE = encode(bands(HEIGHT, WIDTH))
# Loaded and unloaded by mutants; "bands" is what good requests go to.
SPARE = "spare"
REGION_KEY, REGION_BYTES = "/segserve_fuzz", len(PIXELS)
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
WORDS = (
    "bands", SPARE, "image", "mask", "logits", "confidence", "png", "raw", "1", "-1", "01", "²", "",
    "9" * 5000, "UINT8", "BYTES", "FP32", "BOOL", "flip", "0.75", "1e9", "nan", "raw,stats",
    "overlay", "polygons", "rle", "jpeg", "true", "false", "model", "original", "timeout",
    "priority", "binary_data", "binary_data_output", "binary_data_size", "shared_memory_region",
    "shared_memory_byte_size", "shared_memory_offset", "region", REGION_KEY, "/", "/../etc/passwd",
    "aGk=", "é\0", "\ud800", "日本", "x" * 300, "data:image/png;base64,aGk=", "a\r\nb: c",
)  # fmt: skip
INTEGERS = (
    0, 1, 2, 3, 4, 8, HEIGHT, WIDTH, -1, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63,
    2**64, 10**30, -(2**63) - 1,
)  # fmt: skip


def text(chance: random.Random) -> str:
    """A word that means something here, or none."""
    if chance.random() < 0.8:
        return chance.choice(WORDS)
    return "".join(chr(chance.choice((9, 65, 97, 0xE9, 0x4E2D, 0x1F600))) for _ in range(4))


def value(chance: random.Random, depth: int = 0) -> Json:
    """Any JSON, small."""
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return text(chance)
    if kind == 2:
        return chance.choice(INTEGERS)
    if kind == 3:
        return chance.choice((None, True, False, 1.5, 1e308, float("inf"), float("nan"), -0.0))
    if kind < 6:
        return chance.randrange(-2, 300)
    if kind == 6:
        return {text(chance): value(chance, depth + 1) for _ in range(chance.randrange(4))}
    count = chance.choice((0, 1, 2, 5, 2000 if depth == 0 else 3))
    one = value(chance, depth + 1)
    return [one if chance.random() < 0.7 else value(chance, depth + 1) for _ in range(count)]


def changed(chance: random.Random, found: Json, times: int) -> Json:
    """``found`` with so many places replaced, added or taken away."""
    whole: list[Json] = [found]
    for _ in range(times):
        place: list[Json] | dict[str, Json] = whole
        while True:
            inner = place.values() if isinstance(place, dict) else place
            deeper = [item for item in inner if isinstance(item, (dict, list)) and item]
            if not deeper or (place is not whole and chance.random() < 0.35):
                break
            place = chance.choice(deeper)
        if isinstance(place, dict):
            key = chance.choice((*place, text(chance)))
            if chance.random() < 0.3:
                place.pop(key, None)
            else:
                place[key] = value(chance, 1)
        elif place is not whole or chance.random() < 0.1:
            index = chance.randrange(len(place))
            if chance.random() < 0.3:
                place.insert(index, value(chance, 1))
            else:
                place[index] = value(chance, 1)
    return whole[0]


def dumps(found: Json) -> bytes:
    """JSON, with NaN and infinity as Python writes them."""
    return json.dumps(found).encode("utf-8", "surrogatepass")


def scrambled(chance: random.Random, data: bytes) -> bytes:
    """A few bytes flipped, cut out, doubled or the end cut off."""
    if not data:
        return data
    found, place = bytearray(data), chance.randrange(len(data))
    kind = chance.randrange(4)
    if kind == 0:
        for _ in range(chance.randint(1, 6)):
            found[chance.randrange(len(found))] = chance.randrange(256)
    elif kind == 1:
        del found[place : place + chance.randint(1, 30)]
    elif kind == 2:
        found[place:place] = found[place : place + chance.randint(1, 30)] * chance.choice(
            (1, 1, 40)
        )
    else:
        del found[place:]
    return bytes(found)
