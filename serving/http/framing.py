"""Finds where HTTP/1.1 requests begin and end in a stream of bytes: RFC 9112, strict, without I/O.

What two parsers could read differently is refused, because a proxy in front of this server may be
the other one: a bare CR or LF, a blank before a colon, a folded header, Content-Length beside
Transfer-Encoding or twice, another coding than ``chunked``, more or fewer than one Host.

An offer to switch protocols (``Upgrade``) is ignored, as RFC 9110, 7.8 allows: the body is this
request's body whatever the offer says. CONNECT is refused.

Nothing grows with what a client sends but the body: a header is bounded by bytes and by fields,
what frames a chunked body (sizes, extensions) may exceed the body by ``max_header_bytes`` at most.
Trailers have that limit too; they are checked and dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Literal
from urllib.parse import unquote_to_bytes

# RFC 9110, 5.6.2.
TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# So much of a chunked body is read in one step: a chunk costs more than its bytes.
MAX_CHUNKS_A_STEP = 256
# Longer lengths are cut to this: above any limit, and harmless to convert.
HUGE_LENGTH = 10**18

_REQUEST_LINE = re.compile(rb"([^\s]+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_BLANK_LINES = re.compile(rb"(?:\r\n)+")
_DIGITS = re.compile(rb"[0-9]+")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_AUTHORITY = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?"
)


class ProtocolError(Exception):
    """Bytes that are not a request this server takes; the connection cannot continue.

    Args:
        reason: the code of the answer, and the label in ``segserve_rejected_total``.
    """

    def __init__(
        self,
        text: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        reason: str = "invalid_request",
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class RequestHead:
    """A request line and its headers.

    Attributes:
        path: decoded; ``*`` for OPTIONS of the whole server.
        headers: names in lower case. A Content-Length has no leading zeros, and Host is the
            target's own where that names one.
        keep_alive: whether the client may send another request on the connection.
        expects_continue: whether it waits for 100 (Continue) before it sends the body.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    version: Literal["1.0", "1.1"]
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    expects_continue: bool


class _State(Enum):
    HEAD = auto()
    SIZED_BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()


class RequestReader:
    """Cuts a stream of bytes into requests: feed it, then read a head, then the head's body.

    Args:
        max_header_bytes: of a request line with its headers, blank lines before it included.
        max_header_fields: of one request.
    """

    def __init__(self, max_header_bytes: int, max_header_fields: int) -> None:
        self._max_bytes = max_header_bytes
        self._max_fields = max_header_fields
        self._buffer = bytearray()
        self._state = _State.HEAD
        # Of the head: blank lines before it, bytes searched for its end, whether its line is known.
        self._skipped = 0
        self._searched = 0
        self._has_line = False
        # Of the body: bytes left of it or of its chunk, bytes of it so far, and bytes around them.
        self._left = 0
        self._body_bytes = 0
        self._framing_bytes = 0

    @property
    def buffered(self) -> int:
        """Bytes that were fed and not read."""
        return len(self._buffer)

    @property
    def in_body(self) -> bool:
        """Returns whether a head was read whose body has not ended."""
        return self._state is not _State.HEAD

    @property
    def in_trailers(self) -> bool:
        """Returns whether the last chunk has come and the message has not ended."""
        return self._state is _State.TRAILERS

    @property
    def has_begun(self) -> bool:
        """Returns whether something of the next head has come, be it a blank line."""
        return self._state is _State.HEAD and bool(self._buffer or self._skipped)

    def feed(self, data: bytes) -> None:
        """Takes bytes from the wire."""
        self._buffer += data

    def read_head(self) -> RequestHead | None:
        """Returns the next request's head; None where more bytes are needed.

        Raises:
            ProtocolError: what came is not a request, or is above a limit.
        """
        buffer = self._buffer
        if buffer[:1] == b"\r" and (blank := _BLANK_LINES.match(buffer)):
            self._skipped += blank.end()
            del buffer[: blank.end()]
            self._searched = 0
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        size = self._skipped + (len(buffer) if end < 0 else end + 4)
        if size > self._max_bytes:
            raise ProtocolError(
                f"the header is longer than {self._max_bytes} bytes (setting max_header_bytes)",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header_bytes",
            )
        if end < 0:
            self._check_unfinished()
            return None
        lines = bytes(buffer[: end + 2])
        del buffer[: end + 4]
        self._skipped = self._searched = 0
        self._has_line = False
        return self._parse(lines)

    def read_body(self) -> bytes:
        """Returns what has come of the body, at most some of its chunks; :attr:`in_body` says
        whether there is more to come.

        Raises:
            ProtocolError: the chunks are malformed, or what frames them is above the limit.
        """
        if self._state is _State.SIZED_BODY:
            piece = self._take(self._left)
            self._left -= len(piece)
            if not self._left:
                self._state = _State.HEAD
            return piece
        return self._read_chunks()

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        if size >= len(buffer):
            piece = bytes(buffer)
            buffer.clear()
            return piece
        piece = bytes(memoryview(buffer)[:size])
        del buffer[:size]
        return piece

    def _check_unfinished(self) -> None:
        """Refuses at once what can never become a head, in place of waiting for its end."""
        buffer = self._buffer
        if _BARE_LF.search(buffer, max(0, self._searched - 1)):
            raise ProtocolError("a line of the header does not end in CR LF")
        if buffer and buffer != b"\r" and buffer[:1].translate(None, TOKEN_BYTES):
            raise ProtocolError("this is not an HTTP/1.1 request: expected METHOD TARGET HTTP/1.1")
        if not self._has_line and (end := buffer.find(b"\r\n", max(0, self._searched - 1))) >= 0:
            _split_request_line(bytes(buffer[:end]))
            self._has_line = True
        self._searched = len(buffer)

    def _parse(self, lines: bytes) -> RequestHead:
        if lines.count(b"\r\n") - 1 > self._max_fields:
            raise ProtocolError(
                f"the header has more than {self._max_fields} fields (setting max_header_fields)",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header_fields",
            )
        line, *fields = lines[:-2].split(b"\r\n")
        method, target, version = _split_request_line(line)
        if _FORBIDDEN.search(lines):
            raise ProtocolError("the header holds a control character")
        headers: list[tuple[bytes, bytes]] = []
        special: dict[bytes, list[bytes]] = {name: [] for name in _SPECIAL}
        for field in fields:
            name, value = _split_field(field)
            headers.append((name, value))
            if name in special:
                special[name].append(value)
        authority, raw_path, query = _split_target(method, target)
        _check_host(special[b"host"], version)
        if authority is not None:
            headers = [(n, authority if n == b"host" else v) for n, v in headers]
        length = self._begin_body(special, version)
        if length is not None:
            headers = [(n, length if n == b"content-length" else v) for n, v in headers]
        tokens = _split_list(special[b"connection"])
        return RequestHead(
            method=method,
            path=unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            raw_path=raw_path,
            query=query,
            version=version,
            headers=headers,
            keep_alive=b"close" not in tokens and (version == "1.1" or b"keep-alive" in tokens),
            expects_continue=(
                version == "1.1" and self.in_body and b"100-continue" in _split_list(
                    special[b"expect"]
                )
            ),
        )  # fmt: skip

    def _begin_body(
        self, special: dict[bytes, list[bytes]], version: Literal["1.0", "1.1"]
    ) -> bytes | None:
        """Decides how the body is framed (RFC 9112, 6.3); returns its Content-Length's digits."""
        lengths, codings = special[b"content-length"], special[b"transfer-encoding"]
        self._body_bytes = self._framing_bytes = self._left = 0
        if codings:
            if lengths:
                raise ProtocolError("Content-Length and Transfer-Encoding: expected one of them")
            if version == "1.0":
                raise ProtocolError("HTTP/1.0 has no Transfer-Encoding")
            if _split_list(codings) != [b"chunked"]:
                raise ProtocolError(
                    "this Transfer-Encoding is not supported; expected chunked alone",
                    HTTPStatus.NOT_IMPLEMENTED,
                    "unsupported",
                )
            self._state = _State.CHUNK_SIZE
            return None
        if not lengths:
            return None
        if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
            raise ProtocolError("Content-Length: expected one number")
        digits = lengths[0].lstrip(b"0") or b"0"
        self._left = int(digits) if len(digits) < 19 else HUGE_LENGTH
        if self._left:
            self._state = _State.SIZED_BODY
        return b"%d" % self._left

    def _read_chunks(self) -> bytes:
        buffer, pieces = self._buffer, []
        at, chunks = 0, 0
        while chunks < MAX_CHUNKS_A_STEP:
            if self._state is _State.CHUNK_DATA:
                piece = bytes(memoryview(buffer)[at : at + self._left])
                at += len(piece)
                self._left -= len(piece)
                self._body_bytes += len(piece)
                pieces.append(piece)
                if self._left:
                    break
                self._state = _State.CHUNK_END
            if self._state is _State.CHUNK_END:
                mark = buffer[at : at + 2]
                if mark != b"\r\n"[: len(mark)]:
                    raise ProtocolError("a chunk is longer than its size says")
                if len(mark) < 2:
                    break
                at += 2
                self._state = _State.CHUNK_SIZE
            end = buffer.find(b"\r\n", at)
            self._check_framing((len(buffer) if end < 0 else end + 2) - at)
            if end < 0:
                break
            line = bytes(memoryview(buffer)[at:end])
            self._framing_bytes += len(line) + 2
            at, chunks = end + 2, chunks + 1
            if self._state is _State.TRAILERS:
                if not line:
                    self._state = _State.HEAD
                    break
                if _FORBIDDEN.search(line):
                    raise ProtocolError("a trailer holds a control character")
                _split_field(line)
                continue
            size = _CHUNK_LINE.fullmatch(line)
            if size is None:
                raise ProtocolError("a chunk's size: expected hexadecimal digits")
            self._left = int(size[1], 16)
            self._state = _State.CHUNK_DATA
            if not self._left:
                self._state = _State.TRAILERS
                self._body_bytes = self._framing_bytes = 0
        del buffer[:at]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_framing(self, line_bytes: int) -> None:
        """Bounds one line of it, all of it against the body, and trailers by themselves."""
        whole = self._framing_bytes + line_bytes
        if line_bytes > self._max_bytes or whole > self._max_bytes + self._body_bytes:
            raise ProtocolError(
                f"chunk sizes and extensions exceed the body by more than {self._max_bytes} bytes "
                f"(setting max_header_bytes)"
                if not self.in_trailers
                else f"the trailers are longer than {self._max_bytes} bytes "
                f"(setting max_header_bytes)",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header_bytes",
            )


_SPECIAL = (b"host", b"content-length", b"transfer-encoding", b"connection", b"expect")


def _split_request_line(line: bytes) -> tuple[str, bytes, Literal["1.0", "1.1"]]:
    found = _REQUEST_LINE.fullmatch(line)
    if found is None or found[1].translate(None, TOKEN_BYTES):
        raise ProtocolError("the request line is wrong: expected METHOD TARGET HTTP/1.1")
    method, target, major, minor = found.groups()
    if major == b"1":
        return method.decode("ascii"), target, "1.0" if minor == b"0" else "1.1"
    if major == b"0" or method == b"PRI":
        raise ProtocolError("this server speaks HTTP/1.1, without HTTP/0.9 and HTTP/2")
    raise ProtocolError(
        "this server speaks HTTP/1.1 alone",
        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
        "http_version_not_supported",
    )


def _split_field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not name or name.translate(None, TOKEN_BYTES):
        raise ProtocolError("a header field is malformed: expected NAME: VALUE on one line")
    return name.lower(), value.strip(b" \t")


def _split_target(method: str, target: bytes) -> tuple[bytes | None, bytes, bytes]:
    """Returns the authority, where the target names one; its path; and its query."""
    if method == "CONNECT":
        raise ProtocolError(
            "this server is not a proxy: CONNECT is not allowed",
            HTTPStatus.METHOD_NOT_ALLOWED,
            "method_not_allowed",
        )
    authority: bytes | None = None
    if absolute := _ABSOLUTE.fullmatch(target):
        authority, target = absolute.groups()
        if not authority or authority[:1] == b":" or not _AUTHORITY.fullmatch(authority):
            raise ProtocolError("the host in the request's target is not a valid HOST or HOST:PORT")
        if target[:1] != b"/":
            target = b"/" + target
    elif target == b"*" and method == "OPTIONS":
        return None, target, b""
    elif target[:1] != b"/":
        raise ProtocolError("the request's target is wrong: expected a path that begins with /")
    # Clients should keep a fragment to themselves.
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return authority, path, query


def _check_host(hosts: list[bytes], version: Literal["1.0", "1.1"]) -> None:
    """Checks the Host header by RFC 9112, section 3.2."""
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise ProtocolError(f"{len(hosts)} Host headers: expected one")
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        raise ProtocolError("the Host header is not a valid HOST or HOST:PORT")


def _split_list(values: list[bytes]) -> list[bytes]:
    """Returns the members of a comma-separated header, in lower case."""
    if not values:
        return []
    members = (member.strip(b" \t") for member in b",".join(values).lower().split(b","))
    return [member for member in members if member]
