"""Files and options cut out of multipart forms."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidImage, InvalidRequest, SegserveError
from serving.http.multipart import (
    MAX_BOUNDARY_BYTES,
    MAX_FIELD_BYTES,
    MAX_PARTS,
    is_form,
    read_form,
    read_parameters,
)
from serving.http.options import OPTIONS

TYPE = "multipart/form-data; boundary=XX"
FIELD = b'Content-Disposition: form-data; name="note"\r\n\r\nmodel'
# What a parser could take for the end of a part.
PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", b"\r\n--X", b"XX", b"\0"])


def make_file(content: bytes, name: str = 'filename="street.jpg"') -> bytes:
    head = f'Content-Disposition: form-data; name="image"; {name}\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + content


def make_field(name: str, text: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode()


def make_form(*parts: bytes) -> bytes:
    return b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"


def cut_file(body: bytes, content_type: str = TYPE) -> bytes:
    return read_form(body, content_type, OPTIONS).image


@given(st.lists(PIECES | st.binary(max_size=9)).map(b"".join))
def test_the_file_comes_out_as_it_went_in(content: bytes) -> None:
    if b"--XX" in content:
        return
    assert cut_file(make_form(FIELD, make_file(content), FIELD)) == content


def test_a_large_file_is_one_slice() -> None:
    content = bytes(range(256)) * 20_000
    assert cut_file(make_form(make_file(content))) == content
    assert cut_file(make_form(make_file(b"")), 'multipart/form-data; boundary="XX"') == b""


@pytest.mark.parametrize(
    "name",
    [
        'filename="street.jpg"',
        "filename=street.jpg",
        "filename*=UTF-8''stra%C3%9Fe.jpg",
        "filename=\"x.jpg\"; filename*=UTF-8''stra%C3%9Fe.jpg",
        'FILENAME="street.jpg"',
        'filename="a\\"b;c.jpg"',
        'filename=""',
    ],
)
def test_every_way_to_name_the_file(name: str) -> None:
    assert cut_file(make_form(FIELD, make_file(b"photo", name))) == b"photo"


@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/png\r\n\r\nphoto',
        b'Content-Disposition: form-data; name="x"\r\ncontent-type: image/png\r\n\r\nphoto',
        b'content-disposition: form-data; name="x"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\nphoto",
        b'Content-Disposition: form-data; name="file"\r\n\r\nphoto',
        b"Content-Disposition: form-data; name=image\r\n\r\nphoto",
        b'Content-Disposition: form-data;\r\n name="image"\r\n\r\nphoto',
    ],
)
def test_a_part_without_a_file_name_may_be_the_image(part: bytes) -> None:
    assert cut_file(make_form(FIELD, part)) == b"photo"


def test_an_input_without_a_chosen_file_is_none() -> None:
    """As browsers send a form's second, empty file input."""
    empty = (
        b'Content-Disposition: form-data; name="second"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    assert cut_file(make_form(empty, make_file(b"photo"), empty)) == b"photo"
    with pytest.raises(InvalidImage, match="this one holds 0"):
        cut_file(make_form(empty))


def test_a_part_does_not_inherit_the_disposition_of_the_one_before() -> None:
    for parts in ([b"X: y\r\n\r\nmore", b"\r\nbare"], [b"\r\nbare", b"X: y\r\n\r\nmore"]):
        assert cut_file(make_form(make_file(b"photo"), *parts)) == b"photo"


def test_fields_are_options_and_others_are_counted() -> None:
    form = read_form(
        make_form(
            make_field("format", "png,stats"),
            make_field("classes", "Straße,1"),
            make_field("image", "jpeg"),
            make_field("quality", ""),
            make_file(b"photo"),
            make_field("csrf", "x"),
        ),
        TYPE,
        OPTIONS,
    )
    assert form.image == b"photo"
    assert form.options == {"format": ["png,stats"], "classes": ["Straße,1"], "image": ["jpeg"]}
    assert form.ignored == 1


@pytest.mark.parametrize(
    ("before", "after"), [(b"preamble\r\n", b"epilogue"), (b"\r\n", b""), (b"--X\r\n", b"\r\n--XX")]
)
def test_what_is_around_the_parts_is_skipped(before: bytes, after: bytes) -> None:
    assert cut_file(before + make_form(make_file(b"photo")) + after) == b"photo"


def test_blanks_may_fill_up_the_line_of_a_boundary() -> None:
    body = make_form(make_file(b"photo")).replace(b"--XX\r\n", b"--XX \t\r\n")
    assert cut_file(body) == b"photo"


@pytest.mark.parametrize("boundary", ["'()+_,-./:=?", "a b", "x" * 70, "x" * MAX_BOUNDARY_BYTES])
def test_boundaries(boundary: str) -> None:
    body = make_form(make_file(b"photo")).replace(b"XX", boundary.encode())
    assert cut_file(body, f'multipart/form-data; charset=utf-8; boundary="{boundary}"') == b"photo"


@pytest.mark.parametrize(
    ("body", "content_type", "error", "message"),
    [
        (make_form(FIELD), TYPE, InvalidImage, "this one holds 0"),
        (make_form(make_file(b"a"), make_file(b"b")), TYPE, InvalidImage, "this one holds 2"),
        (make_form(make_file(b"a")), "multipart/form-data", InvalidRequest, "no boundary"),
        (make_form(make_file(b"a"))[:-6], TYPE, InvalidRequest, "before its last boundary"),
        (b"", TYPE, InvalidRequest, "before its last boundary"),
        (b"--XX", TYPE, InvalidRequest, "before its last boundary"),
        (b"\xff\xd8 no form", TYPE, InvalidRequest, "multipart form: "),
        (make_form(*[FIELD] * (MAX_PARTS + 1)), TYPE, InvalidRequest, "more than 100 parts"),
        (make_form(make_file(b"a")).replace(b"XX", b"X" * 257),
         f"multipart/form-data; boundary={'X' * 257}", InvalidRequest, "boundary has 257"),
        (make_form(b"a:" + b"b" * 9000), TYPE, InvalidRequest, "no end within 8192 bytes"),
        (make_form(make_file(b"a")).replace(b"\r\n", b"\n"), TYPE, InvalidRequest, "CR LF"),
        (make_form(make_field("tta", "1" * (MAX_FIELD_BYTES + 1))), TYPE, InvalidRequest,
         "expected at most 4096"),
        (make_form(b'Content-Disposition: form-data; name="tta"\r\n\r\n\xff'), TYPE,
         InvalidRequest, "not UTF-8"),
        (make_form(b"Content-Transfer-Encoding: base64\r\n" + make_file(b"aGk=")), TYPE,
         InvalidRequest, "Content-Transfer-Encoding 'base64'"),
    ],
)  # fmt: skip
def test_what_is_no_such_form_is_named(
    body: bytes, content_type: str, error: type[SegserveError], message: str
) -> None:
    with pytest.raises(error, match=message):
        cut_file(body, content_type)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form_or_an_error_of_ours(content: bytes) -> None:
    for body in (content, make_form(content), b"--XX" + content, make_form(make_file(content))):
        with suppress(InvalidRequest):
            cut_file(body)


def test_the_content_type() -> None:
    assert is_form("Multipart/Form-Data ; boundary=x")
    assert not is_form("multipart/form-data2")
    assert not is_form("")
    found = read_parameters('multipart/form-data; a = "b;c\\"d" ;B=e; b=f')
    assert found == {"a": 'b;c"d', "b": "e"}
