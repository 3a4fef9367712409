"""The one file of a multipart form (RFC 7578), cut out of the body that is in memory already.

Starlette's parser copies each file twice, and one above 1 MB through the disk.
"""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import InvalidImage, InvalidRequest

MEDIA_TYPE = "multipart/form-data"
# A form holds one file and perhaps some fields; each part costs time.
MAX_PARTS = 100


def cut_file(body: bytes, content_type: str) -> bytes:
    """The content of the form's only file; other fields are not looked at.

    Raises:
        InvalidRequest: no form.
        InvalidImage: a form without exactly one file.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("multipart form: its Content-Type names no boundary")
    parts = _Parts()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.begin,
            "on_header_field": parts.add_name,
            "on_header_value": parts.add_value,
            "on_header_end": parts.end_header,
            "on_headers_finished": parts.end_headers,
            "on_part_data": parts.add_data,
            "on_end": parts.end,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"multipart form: {error}") from None
    if not parts.complete:
        raise InvalidRequest("multipart form: it ends before its last boundary")
    if len(parts.files) != 1:
        raise InvalidImage(
            f"a multipart form must hold one file, this one holds {len(parts.files)}"
        )
    return b"".join(body[start:end] for start, end in parts.files[0])


class _Parts:
    """Where the files' bytes lie in the body, as the parser tells."""

    def __init__(self) -> None:
        self.files: list[list[tuple[int, int]]] = []
        self.complete = False
        self._parts = 0
        self._name = self._value = self._disposition = b""
        self._is_file = False

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"multipart form: more than {MAX_PARTS} parts")
        self._disposition, self._is_file = b"", False

    def add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def end_headers(self) -> None:
        self._is_file = b"filename" in parse_options_header(self._disposition)[1]
        if self._is_file:
            self.files.append([])

    def add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.files[-1].append((start, end))

    def end(self) -> None:
        self.complete = True
