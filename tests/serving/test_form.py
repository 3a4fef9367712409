"""Files cut out of multipart forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidImage, InvalidRequest, SegserveError
from serving.http.form import MAX_PARTS, cut_file

TYPE = "multipart/form-data; boundary=XX"
FIELD = b'Content-Disposition: form-data; name="size"\r\n\r\nmodel'
# What a parser could take for the end of a part.
PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", b"\r\n--X", b"XX", b"\0"])


def make_file(content: bytes, name: str = "street.jpg") -> bytes:
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + content


def make_form(*parts: bytes) -> bytes:
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"


@given(st.lists(PIECES | st.binary(max_size=9)).map(b"".join))
def test_the_file_comes_out_as_it_went_in(content: bytes) -> None:
    if b"--XX" in content:
        return
    assert cut_file(make_form(FIELD, make_file(content), FIELD), TYPE) == content


def test_a_large_file_is_one_slice() -> None:
    content = bytes(range(256)) * 20_000
    assert cut_file(make_form(make_file(content)), TYPE) == content
    assert cut_file(make_form(make_file(b"")), 'multipart/form-data; boundary="XX"') == b""


@pytest.mark.parametrize(
    ("body", "content_type", "error", "message"),
    [
        (make_form(FIELD), TYPE, InvalidImage, "this one holds 0"),
        (make_form(make_file(b"a"), make_file(b"b")), TYPE, InvalidImage, "this one holds 2"),
        (make_form(make_file(b"a")), "multipart/form-data", InvalidRequest, "no boundary"),
        (make_form(make_file(b"a"))[:-6], TYPE, InvalidRequest, "before its last boundary"),
        (b"", TYPE, InvalidRequest, "before its last boundary"),
        (b"\xff\xd8 no form", TYPE, InvalidRequest, "multipart form: "),
        (make_form(*[FIELD] * (MAX_PARTS + 1)), TYPE, InvalidRequest, "more than 100 parts"),
    ],
)
def test_what_is_no_such_form_is_named(
    body: bytes, content_type: str, error: type[SegserveError], message: str
) -> None:
    with pytest.raises(error, match=message):
        cut_file(body, content_type)
