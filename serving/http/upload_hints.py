"""What people send in place of an image's bytes, recognised so that the error says what to do."""

from __future__ import annotations

import re

# The magic bytes of the image formats that are decoded, and how their base64 begins.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")
_BASE64 = re.compile(rb'\s*"?(/9j/|iVBORw0KGgo|UklGR|Qk)[A-Za-z0-9+/\s\\]', re.ASCII)
_DATA_URL = re.compile(rb'\s*"?(?:[\w-]+=)?data:[\w.+-]*/?[\w.+-]*[;,]', re.ASCII | re.IGNORECASE)
_URL = re.compile(rb'\s*"?(?:[\w-]+=)?(?:https?|ftp|s3|gs|file)://', re.ASCII | re.IGNORECASE)
_JSON = re.compile(rb"\s*(?:\{\s*[\"}]|\[)", re.ASCII)
_FILE_NAME = re.compile(rb"\s*@?[\w./\\: -]{1,255}\.(?:jpe?g|png|bmp|webp)\s*", re.ASCII | re.I)
_FORM = re.compile(rb"(?:\r\n)?--[\x21-\x7e]{1,256}\r\n", re.ASCII)
_FORM_FIELD = re.compile(rb"[\w.-]{1,64}=", re.ASCII)
# What `curl -d @file` leaves out, besides zero bytes.
_LINE_END = re.compile(rb"[\r\n]")
BEGINNING = 512
URL_ENCODED = "application/x-www-form-urlencoded"


def find_hint(data: bytes, content_type: str) -> str:
    """Returns what to send instead of a body that could not be decoded; empty where nothing is
    known of it."""
    head = data[:BEGINNING]
    kind = content_type.partition(";")[0].strip().lower()
    if not data:
        return "the body is empty: send the image's bytes (curl --data-binary @street.jpg)"
    if _DATA_URL.match(head):
        return "the body is a data: URL: decode its base64 and send the bytes"
    if _URL.match(head):
        return "the body is a URL, which the server does not fetch: send the image's bytes"
    if _BASE64.match(head):
        return "the body is base64 text: decode it and send the bytes"
    if _JSON.match(head):
        return "the body is JSON: send the image's bytes here, JSON tensors to .../infer"
    if _FORM.match(head):
        return "the body is a form: send its Content-Type with it (multipart/form-data; boundary=)"
    if len(data) <= 260 and _FILE_NAME.fullmatch(data):
        return "the body is the name of a file: send its bytes (curl --data-binary @street.jpg)"
    # `curl --data-binary` has that Content-Type too, and keeps every byte.
    if kind == URL_ENCODED and (
        _FORM_FIELD.match(head) or (head.startswith(_IMAGES) and not _LINE_END.search(data))
    ):
        return (
            "its Content-Type is that of `curl -d`, which leaves out line ends and so breaks the "
            "bytes: send them with `curl --data-binary @street.jpg`, or -T, or -F image=@street.jpg"
        )
    return ""
