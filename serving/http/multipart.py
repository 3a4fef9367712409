"""Reads and writes ``multipart/form-data`` bodies (RFC 7578), in memory.

A request's form holds one image and options. It is there as a whole, so a part ends where its
delimiter is found: one search a part, in C, whatever the body holds. Parsers for streams look at
each byte that may begin a delimiter.

An answer in several output formats is a form as well: unlike ``multipart/mixed`` its parts have
names, and browsers read it with ``Response.formData()``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from serving.errors import InvalidImage, InvalidRequest
from serving.formats.label_map import Encoded

MEDIA_TYPE = "multipart/form-data"
# A form holds one file and perhaps some options; each part costs time.
MAX_PARTS = 100
MAX_PART_HEADER_BYTES = 8192
# Of the body that one call of a C function searches or copies: it keeps the interpreter's lock.
PIECE_BYTES = 1 << 18
MAX_FIELD_BYTES = 4096
# RFC 2046 allows 70 characters.
MAX_BOUNDARY_BYTES = 256
# A part without a file name is the image all the same, if it is called so or says it is one.
IMAGE_NAMES = frozenset({"image", "file"})
# ``image`` is also an option's name.
PICTURE_NAMES = frozenset({b"png", b"jpeg"})
# A parameter of a header: quoted, or a token.
_PARAMETER = re.compile(
    r""";\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))""", re.ASCII | re.DOTALL
)


@dataclass
class Form:
    """What a form holds.

    Attributes:
        options: texts by name, of those names that were asked for; blank ones are left out.
        ignored: how many fields have other names.
    """

    image: bytes
    options: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0


@dataclass(frozen=True)
class _Part:
    """One part: its headers' names in lower case, and where its content lies in the body."""

    headers: Mapping[str, str]
    start: int
    end: int

    @property
    def parameters(self) -> dict[str, str]:
        """Returns the parameters of the part's Content-Disposition."""
        return read_parameters(self.headers.get("content-disposition", ""))


def is_form(content_type: str) -> bool:
    """Returns whether a Content-Type says that the body is a form."""
    return content_type.partition(";")[0].strip().lower() == MEDIA_TYPE


def read_form(body: bytes, content_type: str, names: Collection[str] = ()) -> Form:
    """Returns the form's only file, and the fields whose names are options. Runs on a pool thread.

    Args:
        names: of options; other fields have no effect.

    Raises:
        InvalidRequest: not a form, or one that is too long in some way.
        InvalidImage: a form without exactly one file.
    """
    form, files = Form(b""), []
    for part in _split(body, _read_boundary(content_type)):
        parameters = part.parameters
        name = parameters.get("name", "")
        if _is_file(part, parameters, body):
            # A browser sends an input without a chosen file as an empty one without a name.
            if part.end > part.start or _file_name(parameters):
                files.append(part)
        elif name in names:
            text = _read_text(name, part, body)
            if text.strip():
                form.options.setdefault(name, []).append(text)
        else:
            form.ignored += 1
    if len(files) != 1:
        raise InvalidImage(
            f"a multipart form must hold one file, this one holds {len(files)}; "
            f"send the image as a part with a file name (curl -F image=@street.jpg)"
        )
    encoding = files[0].headers.get("content-transfer-encoding", "binary").strip().lower()
    if encoding not in ("binary", "8bit", "7bit"):
        raise InvalidRequest(
            f"multipart form: Content-Transfer-Encoding {encoding[:32]!r} of the file is not "
            f"supported; expected its bytes as they are"
        )
    form.image = _cut(body, files[0].start, files[0].end)
    return form


def read_parameters(header: str) -> dict[str, str]:
    """Returns the parameters of a header such as Content-Disposition; of two the first counts."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        text = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2], flags=re.DOTALL)
        found.setdefault(match[1].lower(), text)
    return found


def _read_boundary(content_type: str) -> bytes:
    boundary = read_parameters(content_type).get("boundary", "")
    if not boundary:
        raise InvalidRequest("multipart form: its Content-Type names no boundary")
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise InvalidRequest(
            f"multipart form: its boundary has {len(boundary)} characters, "
            f"expected at most {MAX_BOUNDARY_BYTES}"
        )
    return boundary.encode("latin-1", "replace")


def _split(body: bytes, boundary: bytes) -> list[_Part]:
    """Returns where the parts lie; what is before the first and behind the last is skipped (RFC
    2046)."""
    delimiter = b"\r\n--" + boundary
    at = 0 if body.startswith(delimiter[2:]) else _find(body, delimiter, 0) + 2
    if at == 1:
        raise InvalidRequest(
            "multipart form: the boundary that its Content-Type names is not in the body, "
            "so it ends before its last boundary"
        )
    at += len(delimiter) - 2
    parts: list[_Part] = []
    while not body.startswith(b"--", at):
        if len(parts) == MAX_PARTS:
            raise InvalidRequest(f"multipart form: more than {MAX_PARTS} parts")
        headers, start = _read_headers(body, _skip_line_end(body, at))
        # The line end before a delimiter is the delimiter's; of an empty content it may be missing.
        end = _find(body, delimiter, start - 2)
        if end < 0:
            raise InvalidRequest("multipart form: it ends before its last boundary")
        parts.append(_Part(headers, start, max(start, end)))
        at = end + len(delimiter)
    return parts


def _find(body: bytes, wanted: bytes, start: int) -> int:
    """Searches like ``body.find``, but in pieces: near misses make a search slow."""
    for at in range(start, len(body), PIECE_BYTES):
        found = body.find(wanted, at, at + PIECE_BYTES + len(wanted) - 1)
        if found >= 0:
            return found
    return -1


def _cut(body: bytes, start: int, end: int) -> bytes:
    """Returns ``body[start:end]``, copied in pieces."""
    content, view = BytesIO(), memoryview(body)
    for at in range(start, end, PIECE_BYTES):
        content.write(view[at : min(end, at + PIECE_BYTES)])
    return content.getvalue()


def _skip_line_end(body: bytes, at: int) -> int:
    """Returns where the line behind a delimiter begins; blanks may fill it up."""
    end = body.find(b"\r\n", at, at + MAX_FIELD_BYTES)
    if end < 0 or body[at:end].strip(b" \t"):
        raise InvalidRequest(
            "multipart form: it ends before its last boundary, or a line that begins with its "
            "boundary goes on; lines end with CR LF"
        )
    return end + 2


def _read_headers(body: bytes, at: int) -> tuple[dict[str, str], int]:
    """Returns a part's headers, and where its content begins."""
    if body.startswith(b"\r\n", at):
        return {}, at + 2
    end = body.find(b"\r\n\r\n", at, at + MAX_PART_HEADER_BYTES)
    if end < 0:
        raise InvalidRequest(
            f"multipart form: the header of a part has no end within {MAX_PART_HEADER_BYTES} bytes"
        )
    text = body[at:end].decode("utf-8", "replace")
    headers: dict[str, str] = {}
    for line in re.sub(r"\r\n[ \t]+", " ", text).split("\r\n"):
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return headers, end + 4


def _is_file(part: _Part, parameters: Mapping[str, str], body: bytes) -> bool:
    if "filename" in parameters or "filename*" in parameters:
        return True
    media_type = part.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type == "application/octet-stream":
        return True
    return (
        parameters.get("name") in IMAGE_NAMES
        and body[part.start : min(part.end, part.start + 8)].strip() not in PICTURE_NAMES
    )


def _file_name(parameters: Mapping[str, str]) -> str:
    """Returns the file name as it was sent; only whether there is one matters."""
    extended = parameters.get("filename*", "").rpartition("'")[2]
    return extended or parameters.get("filename", "")


def _read_text(name: str, part: _Part, body: bytes) -> str:
    if part.end - part.start > MAX_FIELD_BYTES:
        raise InvalidRequest(
            f"multipart form: field {name!r} has {part.end - part.start} bytes, "
            f"expected at most {MAX_FIELD_BYTES}"
        )
    try:
        return body[part.start : part.end].decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"multipart form: field {name!r} is not UTF-8") from None


SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
    "application/octet-stream": "raw",
    "application/json": "json",
    "application/geo+json": "geojson",
}


def join_parts(parts: Mapping[str, Encoded]) -> Encoded:
    """Returns one part a form, in order: its name, a file name, its media type and its bytes."""
    boundary = _boundary([part.body for part in parts.values()])
    pieces: list[bytes] = []
    for name, part in parts.items():
        disposition = f'form-data; name="{name}"; filename="{name}.{SUFFIXES[part.media_type]}"'
        head = (
            f"--{boundary}\r\nContent-Disposition: {disposition}\r\n"
            f"Content-Type: {part.media_type}\r\n\r\n"
        )
        pieces += [head.encode(), part.body, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return Encoded(b"".join(pieces), f"multipart/form-data; boundary={boundary}")


def _boundary(bodies: Sequence[bytes]) -> str:
    """Returns a line that no body holds."""
    while True:
        boundary = f"segserve-{secrets.token_hex(16)}"
        if not any(boundary.encode() in body for body in bodies):
            return boundary
