"""Mutants of the odd images that know the structure of their format.

Random bytes die at the first checksum. Here lengths, sizes and fields are changed where they lie,
pieces are dropped, doubled, moved and taken from other files, compressed rows are unpacked and
packed again, and checksums and lengths are mended, mostly.
"""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from tests.support.odd_images import bmp, png, webp
from tests.support.odd_images.corpus import of_format
from tests.support.odd_images.item import tiff

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
LARGEST_BASE = 20_000
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF,
           0x80000000, 0xFFFFFFFF)  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A chunk, segment or stretch of bytes.

    ``length`` is told instead of the right one; ``sound`` is false for a checksum that is wrong.
    """

    kind: bytes
    body: bytes = b""
    length: int | None = None
    sound: bool = True


@cache
def bases(format: str) -> tuple[bytes, ...]:
    """What mutants are made of."""
    return tuple(item.data for item in of_format(format) if len(item.data) <= LARGEST_BASE)


def mutant(format: str, number: int) -> bytes:
    """The file of that number: the same at each call."""
    chance = random.Random(f"{format} {number}")
    data = chance.choice(bases(format))
    pieces = split(format, data)
    change = _CHANGES[format]
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        pieces = change(chance, pieces)
    data = join(format, pieces)
    return _bytes_changed(chance, data) if chance.random() < 0.15 else data


def split(format: str, data: bytes) -> list[Piece]:
    """A file's pieces; :func:`join` of them gives it back, apart from wrong lengths."""
    return _SPLITTERS[format](data)


def join(format: str, pieces: list[Piece]) -> bytes:
    """The pieces as a file, with lengths and checksums."""
    return _JOINERS[format](pieces)


def number_near(chance: random.Random, old: int, bits: int) -> int:
    """Another value of a field of so many bits."""
    kind = chance.randrange(4)
    if kind == 0:
        new = old + chance.choice((-2, -1, 1, 2))
    elif kind == 1:
        new = chance.choice(NUMBERS)
    elif kind == 2:
        new = old ^ 1 << chance.randrange(bits)
    else:
        new = chance.randrange(1 << min(bits, 10))
    return new % (1 << bits)


def field_changed(chance: random.Random, body: bytes, place: int, form: str) -> bytes:
    """``body`` with the integer of that :mod:`struct` form replaced; as it is where it is short."""
    if place + struct.calcsize(form) > len(body):
        return body
    old = struct.unpack_from(form, body, place)[0]
    bits = 8 * struct.calcsize(form)
    new = struct.pack(form.upper(), number_near(chance, old % (1 << bits), bits))
    return body[:place] + new + body[place + len(new) :]


def _bytes_changed(chance: random.Random, data: bytes, most: int = 8) -> bytes:
    """Bits flipped, or a stretch cut out, doubled, or the end cut off."""
    if not data:
        return data
    changed, place = bytearray(data), chance.randrange(len(data))
    kind = chance.randrange(4)
    if kind == 0:
        for _ in range(chance.randint(1, most)):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del changed[place : place + chance.randint(1, 40)]
    elif kind == 2:
        changed[place:place] = changed[place : place + chance.randint(1, 40)]
    else:
        del changed[place:]
    return bytes(changed)


def _pieces_changed(chance: random.Random, pieces: list[Piece], format: str) -> list[Piece]:
    """One dropped, doubled, moved, told another length, changed inside or taken from elsewhere."""
    if not pieces:
        return pieces
    pieces, place = list(pieces), chance.randrange(len(pieces))
    piece, kind = pieces[place], chance.randrange(8)
    if kind == 0:
        del pieces[place]
    elif kind == 1:
        pieces[place:place] = [piece] * chance.choice((1, 1, 2, 20))
    elif kind == 2:
        pieces.insert(chance.randrange(len(pieces)), pieces.pop(place))
    elif kind == 3:
        right = len(piece.body)
        pieces[place] = replace(piece, length=number_near(chance, right, 32))
    elif kind == 4:
        pieces[place] = replace(piece, sound=False)
    elif kind == 5:
        other = split(format, chance.choice(bases(format)))
        if other:
            pieces.insert(place, chance.choice(other))
    else:
        pieces[place] = replace(piece, body=_bytes_changed(chance, piece.body))
    return pieces


def _exif(chance: random.Random) -> bytes:
    order = chance.choice("<>")
    block = tiff(
        chance.randrange(10), order, offset=chance.randint(8, 30), before=chance.randrange(4)
    )
    return _bytes_changed(chance, block) if chance.random() < 0.6 else block


# PNG ------------------------------------------------------------------------------------------


def _split_png(data: bytes) -> list[Piece]:
    pieces, place = [], 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        pieces.append(Piece(kind, body, None if len(body) == length else length))
        place += 12 + length
    return pieces


def _join_png(pieces: list[Piece]) -> bytes:
    parts = [png.SIGNATURE]
    for piece in pieces:
        whole = png.chunk(piece.kind, piece.body, None if piece.sound else 0x12345678)
        if piece.length is not None:
            whole = struct.pack(">I", piece.length) + whole[4:]
        parts.append(whole)
    return b"".join(parts)


def _change_png(chance: random.Random, pieces: list[Piece]) -> list[Piece]:
    kind = chance.randrange(10)
    if kind == 0:
        form, place = chance.choice(
            ((">I", 0), (">I", 4), (">B", 8), (">B", 9), (">B", 10), (">B", 11), (">B", 12))
        )
        return _bodies(pieces, b"IHDR", lambda body: field_changed(chance, body, place, form))
    if kind == 1:
        return _packed_again(chance, pieces)
    if kind in (2, 3):
        return _animated_png(chance, pieces)
    if kind == 4:
        new = chance.choice(
            (
                Piece(b"eXIf", _exif(chance)),
                Piece(b"tRNS", chance.randbytes(chance.choice((1, 2, 6, 256, 300)))),
                Piece(b"PLTE", chance.randbytes(3 * chance.choice((0, 1, 2, 16, 256, 257)))),
                Piece(b"iCCP", b"x\0\0" + zlib.compress(chance.randbytes(200) + bytes(3000))),
                Piece(b"zTXt", b"x\0\0" + zlib.compress(bytes(chance.choice((0, 9, 300_000))))),
                Piece(b"sBIT", chance.randbytes(chance.randrange(6))),
                Piece(b"hIST", bytes(chance.randrange(600))),
                Piece(bytes(chance.choices(b"abAB", k=4)), chance.randbytes(9)),
            )
        )
        pieces = list(pieces)
        pieces.insert(chance.randrange(len(pieces) + 1), new)
        return pieces
    return _pieces_changed(chance, pieces, "PNG")


def _bodies(pieces: list[Piece], kind: bytes, change: Callable[[bytes], bytes]) -> list[Piece]:
    return [replace(p, body=change(p.body)) if p.kind == kind else p for p in pieces]


def _packed_again(chance: random.Random, pieces: list[Piece]) -> list[Piece]:
    """The rows changed, and packed again in other settings into other pieces."""
    data = b"".join(piece.body for piece in pieces if piece.kind == b"IDAT")
    unpacker = zlib.decompressobj()
    rows = b""
    with contextlib.suppress(zlib.error):
        rows = unpacker.decompress(data, 1 << 20)
    for _ in range(chance.randrange(3)):
        rows = _bytes_changed(chance, rows)
    if chance.random() < 0.2:
        rows += bytes(chance.choice((1, 100, 100_000)))
    bits = chance.choice((9, 10, 12, 15, -15))
    packer = zlib.compressobj(chance.choice((0, 1, 6, 9)), zlib.DEFLATED, bits)
    packed = packer.compress(rows) + packer.flush()
    size = chance.choice((1, 5, 100, 10**6, 10**6))
    idat = [Piece(b"IDAT", packed[k : k + size]) for k in range(0, len(packed), size)]
    place = next((k for k, p in enumerate(pieces) if p.kind == b"IDAT"), len(pieces))
    kept = [piece for piece in pieces if piece.kind != b"IDAT"]
    return kept[:place] + idat[:2000] + kept[place:]


def _animated_png(chance: random.Random, pieces: list[Piece]) -> list[Piece]:
    """Control chunks added in front, frames behind, or their fields changed."""
    if any(piece.kind == b"fcTL" for piece in pieces) and chance.random() < 0.6:
        form, place = chance.choice(
            ((">I", 0), (">I", 4), (">I", 8), (">I", 12), (">I", 16), (">B", 24), (">B", 25))
        )
        kind = chance.choice((b"fcTL", b"fcTL", b"acTL", b"fdAT"))
        return _bodies(pieces, kind, lambda body: field_changed(chance, body, place, form))
    numbers = [chance.choice((0, 1, 2, 3, 5, 8, 12, 16, 40, 2**31)) for _ in range(4)]
    control = png.frame_control(
        chance.randrange(3), *numbers, chance.randrange(4), chance.randrange(3)
    )
    frame = Piece(b"fcTL", control[8:-4])
    count = Piece(b"acTL", struct.pack(">II", chance.choice((0, 1, 2, 3, 2**31)), 0))
    rows = [piece.body for piece in pieces if piece.kind == b"IDAT"] or [b""]
    data = Piece(b"fdAT", struct.pack(">I", chance.randrange(5)) + b"".join(rows))
    behind = [frame, data] * chance.randrange(3)
    before = chance.choice(([count], [count, frame], [frame], [count, frame, data]))
    place = next((k for k, p in enumerate(pieces) if p.kind == b"IDAT"), len(pieces))
    end = len(pieces) - 1 if pieces and pieces[-1].kind == b"IEND" else len(pieces)
    return [*pieces[:place], *before, *pieces[place:end], *behind, *pieces[end:]]


# JPEG -----------------------------------------------------------------------------------------


def _split_jpeg(data: bytes) -> list[Piece]:
    """Segments; a scan's data belong to the SOS in front of them."""
    pieces, place = [], 0
    while place + 2 <= len(data):
        if data[place] != 0xFF or data[place + 1] in (0x00, 0xFF):
            following = data.find(b"\xff", place + 1)
            end = len(data) if following < 0 else following
            pieces.append(Piece(b"", data[place:end]))
            place = end
            continue
        marker = data[place + 1]
        if marker in (0x01, *range(0xD0, 0xDA)):
            pieces.append(Piece(bytes([marker])))
            place += 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + max(length, 2)
        pieces.append(Piece(bytes([marker]), data[place + 4 : end]))
        place = end
        if marker == 0xDA:
            stop = place
            while stop + 1 < len(data) and not (
                data[stop] == 0xFF and data[stop + 1] not in (0, *range(0xD0, 0xD8))
            ):
                stop += 1
            pieces.append(Piece(b"", data[place:stop]))
            place = stop
    return pieces


def _join_jpeg(pieces: list[Piece]) -> bytes:
    parts = []
    for piece in pieces:
        if not piece.kind:
            parts.append(piece.body)
        elif piece.kind[0] in (0x01, *range(0xD0, 0xDA)):
            parts.append(b"\xff" + piece.kind)
        else:
            length = len(piece.body) + 2 if piece.length is None else piece.length
            parts.append(b"\xff" + piece.kind + struct.pack(">H", length % 65536) + piece.body)
    return b"".join(parts)


def _change_jpeg(chance: random.Random, pieces: list[Piece]) -> list[Piece]:
    kind, frames = chance.randrange(10), (b"\xc0", b"\xc1", b"\xc2")
    if kind == 0:
        place = chance.choice((0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12))
        form = ">H" if place in (1, 3) else ">B"
        for name in frames:
            pieces = _bodies(pieces, name, lambda body: field_changed(chance, body, place, form))
        return pieces
    if kind == 1:
        place = chance.randrange(10)
        return _bodies(pieces, b"\xda", lambda body: field_changed(chance, body, place, ">B"))
    if kind == 2:
        table = chance.choice((b"\xc4", b"\xdb"))
        return _bodies(pieces, table, lambda body: _bytes_changed(chance, body, 3))
    if kind == 3:
        scans = [k for k, piece in enumerate(pieces) if piece.kind == b"\xda"]
        if not scans:
            return pieces
        one = chance.choice(scans)
        scan = pieces[one : one + 2]
        repeated = scan * chance.choice((0, 2, 2, 10, 200))
        return [*pieces[:one], *repeated, *pieces[one + 2 :]]
    if kind == 4:
        new = chance.choice(
            (
                Piece(b"\xe1", b"Exif\0\0" + _exif(chance)),
                Piece(b"\xdd", struct.pack(">H", chance.choice((0, 1, 2, 9, 65535)))),
                Piece(b"\xdc", struct.pack(">H", chance.choice((0, 1, 30, 65535)))),
                Piece(b"\xcc", bytes((chance.randrange(256), chance.randrange(256)))),
                Piece(b"\xee", b"Adobe\0\x64\0\0\0\0" + bytes([chance.randrange(4)])),
                Piece(b"\xe2", b"ICC_PROFILE\0" + chance.randbytes(40)),
                Piece(
                    b"\xc4", bytes([chance.choice((0, 1, 0x10, 0x11, 0x20))]) + chance.randbytes(30)
                ),
                Piece(b"\xdb", bytes([chance.choice((0, 1, 0x10, 4))]) + chance.randbytes(64)),
                Piece(b"\xd8"),
                Piece(b"\xd9"),
                Piece(bytes([0xD0 + chance.randrange(8)])),
                Piece(b"", b"\xff" * chance.choice((1, 2, 3000))),
            )
        )
        pieces = list(pieces)
        pieces.insert(chance.randrange(len(pieces) + 1), new)
        return pieces
    if kind == 5:
        # Another process on the same data: progressive, arithmetic, lossless.
        other = bytes([chance.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA))])
        return [replace(p, kind=other) if p.kind in frames else p for p in pieces]
    return _pieces_changed(chance, pieces, "JPEG")


# WebP -----------------------------------------------------------------------------------------


def _split_webp(data: bytes) -> list[Piece]:
    """The RIFF header as a piece of its own, then chunks; frames stay in one."""
    pieces, place = [Piece(b"RIFF", b"")], 12
    while place + 8 <= len(data):
        kind, length = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        body = data[place + 8 : place + 8 + length]
        pieces.append(Piece(kind, body, None if len(body) == length else length))
        place += 8 + length + length % 2
    return pieces


def _join_webp(pieces: list[Piece]) -> bytes:
    parts, told = [], None
    for piece in pieces:
        if piece.kind == b"RIFF":
            told = piece.length
            continue
        whole = webp.chunk(piece.kind, piece.body)
        if piece.length is not None:
            whole = piece.kind + struct.pack("<I", piece.length) + whole[8:]
        parts.append(whole)
    return webp.riff(*parts, size=told)


def _change_webp(chance: random.Random, pieces: list[Piece]) -> list[Piece]:
    kind = chance.randrange(10)
    if kind == 0:
        place = chance.randrange(10)
        return _bodies(pieces, b"VP8X", lambda body: field_changed(chance, body, place, "<B"))
    if kind == 1:
        place = chance.randrange(40)
        return _bodies(pieces, b"ANMF", lambda body: field_changed(chance, body, place, "<B"))
    if kind == 2:
        stream = chance.choice((b"VP8 ", b"VP8L", b"ALPH"))
        place = chance.randrange(16)
        return _bodies(pieces, stream, lambda body: field_changed(chance, body, place, "<B"))
    if kind == 3:
        stream = chance.choice((b"VP8 ", b"VP8L", b"ALPH"))
        return _bodies(pieces, stream, lambda body: _bytes_changed(chance, body, 4))
    if kind == 4:
        images = [piece for piece in pieces if piece.kind in (b"VP8 ", b"VP8L")]
        inner = b"".join(webp.chunk(piece.kind, piece.body) for piece in images[:1])
        numbers = [chance.choice((0, 2, 4, 16, 22, 15, 16383)) for _ in range(4)]
        flags = chance.randrange(4)
        frame = webp.frame(numbers[0], numbers[1], numbers[2] + 1, numbers[3] + 1, inner, flags)
        new = chance.choice(
            (
                Piece(b"ANMF", frame[8:]),
                Piece(b"ANIM", bytes(6)),
                Piece(b"EXIF", _exif(chance)),
                Piece(b"ICCP", chance.randbytes(30)),
                Piece(b"XMP ", b"<x/>"),
                Piece(b"ALPH", bytes([chance.randrange(64)]) + chance.randbytes(60)),
                Piece(b"VP8X", webp.extended(15, 22, chance.randrange(64))[8:]),
            )
        )
        pieces = list(pieces)
        pieces.insert(chance.randrange(1, len(pieces) + 1) if pieces else 0, new)
        return pieces
    return _pieces_changed(chance, pieces, "WEBP")


# BMP ------------------------------------------------------------------------------------------


def _split_bmp(data: bytes) -> list[Piece]:
    start = min(struct.unpack_from("<I", data, 10)[0], len(data)) if len(data) >= 14 else 0
    size = struct.unpack_from("<I", data, 14)[0] if len(data) >= 18 else 0
    middle = min(14 + size, max(start, 14))
    return [
        Piece(b"head", data[:middle]),
        Piece(b"colours", data[middle : max(start, middle)]),
        Piece(b"pixels", data[max(start, middle) :]),
    ]


def _join_bmp(pieces: list[Piece]) -> bytes:
    return b"".join(piece.body for piece in pieces)


def _change_bmp(chance: random.Random, pieces: list[Piece]) -> list[Piece]:
    kind = chance.randrange(6)
    if kind in (0, 1):
        form, place = chance.choice(
            (("<I", 2), ("<I", 10), ("<I", 14), ("<I", 18), ("<I", 22), ("<H", 26), ("<H", 28),
             ("<I", 30), ("<I", 34), ("<I", 46), ("<I", 50))
        )  # fmt: skip
        return _bodies(pieces, b"head", lambda body: field_changed(chance, body, place, form))
    if kind == 2:
        masks = (*bmp.MASKS_16.values(), *bmp.MASKS_32.values())
        block = struct.pack("<4I", *chance.choice(masks))
        place = chance.randrange(4) * 4
        return _bodies(
            pieces, chance.choice((b"colours", b"head")),
            lambda body: field_changed(chance, block + body[16:], place, "<I"),
        )  # fmt: skip
    if kind == 3:
        # Run lengths: pairs of a count and a colour or command.
        pairs = [(chance.choice((0, 0, 1, 6, 255)), chance.choice((0, 1, 2, 3, 5, 255)))
                 for _ in range(chance.randrange(40))]  # fmt: skip
        data = b"".join(map(bytes, pairs))
        compression = struct.pack("<I", chance.choice((1, 2)))

        def told(body: bytes) -> bytes:
            return body[:30] + compression + body[34:] if len(body) >= 34 else body

        return _bodies(_bodies(pieces, b"pixels", lambda body: data), b"head", told)
    return _pieces_changed(chance, pieces, "BMP")


_SPLITTERS: dict[str, Callable[[bytes], list[Piece]]] = {
    "PNG": _split_png, "JPEG": _split_jpeg, "WEBP": _split_webp, "BMP": _split_bmp,
}  # fmt: skip
_JOINERS: dict[str, Callable[[list[Piece]], bytes]] = {
    "PNG": _join_png, "JPEG": _join_jpeg, "WEBP": _join_webp, "BMP": _join_bmp,
}  # fmt: skip
_CHANGES: dict[str, Callable[[random.Random, list[Piece]], list[Piece]]] = {
    "PNG": _change_png, "JPEG": _change_jpeg, "WEBP": _change_webp, "BMP": _change_bmp,
}  # fmt: skip
