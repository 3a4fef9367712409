"""What the head of an HTTP request tells of the inference that it announces."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.types import Scope

from serving.door import Announced
from serving.errors import InvalidRequest
from serving.http.options import read_formats
from serving.http.timeouts import TIMEOUT_HEADER, parse_timeout
from serving.oip.protocol import parse_version
from serving.strict_numbers import read_length

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
        formats: tuple[str, ...] = ()
        if operation == "segment":
            formats = read_formats(scope["query_string"], headers.get(b"accept", ""))
        request_bytes = read_length(headers.get(b"content-length", "0").strip(), "Content-Length")
    except InvalidRequest:
        return None
    if operation == "infer":
        return Announced(model, number, timeout_s, request_bytes=request_bytes)
    return Announced(model, number, timeout_s, 0, formats, request_bytes)
