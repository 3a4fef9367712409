"""Bodies of HTTP requests that were made to stall or fill a server, beside ``attacks.py``."""

from __future__ import annotations

import gzip
import json

from tests.support.attacks import MILLION, MODEL, Attack, post, post_gzip

LENGTH = "Inference-Header-Content-Length"

TENSOR = b'{"inputs":[{"name":"image","shape":[1,32,48,3],"datatype":"UINT8","data":%s}]}'
FILES = b'{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES","data":%s}]}'
SHORT = b'{"name":"image","shape":[1],"datatype":"UINT8","data":[' + b"1," * 2500 + b"1]}"
MANY_ELEMENTS = json.dumps(
    {"inputs": [{"name": "image", "shape": [15 * MILLION], "datatype": "BYTES",
                 "parameters": {"binary_data_size": 60 * MILLION}}]}
).encode()  # fmt: skip
FORM = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n%s\r\n--b--'
FORM_TYPE = "multipart/form-data; boundary=b"

BODY_ATTACKS = (
    Attack(
        "numbers of 60 MB",
        post(f"{MODEL}/infer", lambda: TENSOR % (b"[" + b"200," * (15 * MILLION) + b"1]")),
    ),
    Attack(
        "base64 of 60 MB",
        post(f"{MODEL}/infer", lambda: FILES % (b'["' + b"A" * (60 * MILLION) + b'"]')),
    ),
    Attack(
        "empty inputs",
        post_gzip(f"{MODEL}/infer", lambda: b'{"inputs":[' + b"{}," * (10 * MILLION) + b"{}]}"),
    ),
    Attack(
        "inputs with data",
        post_gzip(f"{MODEL}/infer", lambda: b'{"inputs":[' + b",".join([SHORT] * 10_000) + b"]}"),
    ),
    Attack(
        "a long name",
        post_gzip(f"{MODEL}/infer", lambda: TENSOR.replace(b"image", b"a" * 50 * MILLION)),
    ),
    Attack(
        "empty BYTES elements",
        post(
            f"{MODEL}/infer",
            lambda: MANY_ELEMENTS + bytes(60 * MILLION),
            **{LENGTH: str(len(MANY_ELEMENTS))},
        ),
    ),
    Attack(
        "empty gzip members",
        post(
            f"{MODEL}/segment", lambda: gzip.compress(b"") * (2 * MILLION), content_encoding="gzip"
        ),
    ),
    Attack(
        "near boundaries",
        post(f"{MODEL}/segment", lambda: FORM % (b"\r\n--" * (15 * MILLION)),
             content_type=FORM_TYPE),
    ),
    Attack("formats in a query", post(f"{MODEL}/segment?format={'png,' * 7000}", lambda: b"x")),
    Attack(
        "Accept", post(f"{MODEL}/segment", lambda: b"x", accept=",".join(["image/png"] * 3000))
    ),
    Attack(
        "blanks to the index", post_gzip("/v2/repository/index", lambda: b" " * (60 * MILLION))
    ),
    Attack(
        "a deep region",
        post("/v2/systemsharedmemory/region/a/register", lambda: b'{"key":' + b"[" * 60_000),
    ),
)  # fmt: skip
