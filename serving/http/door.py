"""What the head of an HTTP request tells of the inference that it announces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.types import Scope

from serving.door import Announced
from serving.errors import InvalidRequest
from serving.http.segment import choose, split_formats
from serving.http.timeouts import TIMEOUT_HEADER, parse_timeout
from serving.oip.protocol import parse_version

INFERENCE_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(segment|infer)")
_TIMEOUT = TIMEOUT_HEADER.lower().encode()


def read_announced(scope: Scope, headers: Mapping[bytes, str]) -> Announced | None:
    """The inference; None where the request is none, or not one that can be answered."""
    path = INFERENCE_PATH.fullmatch(scope["path"])
    if path is None or scope["method"] != "POST":
        return None
    model, version, operation = path.groups()
    try:
        number = parse_version(version or "")
        timeout_s = parse_timeout(headers.get(_TIMEOUT))
    except InvalidRequest:
        return None
    length = headers.get(b"content-length", "")
    request_bytes = int(length) if length.isdecimal() and len(length) < 20 else 0
    if operation == "infer":
        return Announced(model, number, timeout_s, request_bytes=request_bytes)
    query = parse_qsl(scope["query_string"].decode("latin-1"))
    named = split_formats([value for name, value in query if name == "format"])
    formats = named or (choose((), headers.get(b"accept", "")).format,)
    return Announced(model, number, timeout_s, 0, formats, request_bytes)
