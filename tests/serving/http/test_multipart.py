"""Several forms in one body, read by the standard library's mail parser."""

from email import message_from_bytes
from email.policy import HTTP

from serving.formats.label_map import Encoded
from serving.formats.registry import FORMATS
from serving.http.multipart import SUFFIXES, join_parts


def test_every_part_has_its_name_type_and_bytes():
    parts = {
        "png": Encoded(bytes(range(256)) * 3, "image/png"),
        "raw": Encoded(b"\r\n--segserve-\r\n", "application/octet-stream"),
        "stats": Encoded(b"{}", "application/json"),
    }
    answer = join_parts(parts)
    head = f"Content-Type: {answer.media_type}\r\n\r\n".encode()
    message = message_from_bytes(head + answer.body, policy=HTTP)
    assert message.get_content_type() == "multipart/form-data"
    assert not message.defects
    found = list(message.iter_parts())
    assert [p.get_param("name", header="content-disposition") for p in found] == list(parts)
    assert [p.get_filename() for p in found] == ["png.png", "raw.raw", "stats.json"]
    for part, sent in zip(found, parts.values(), strict=True):
        assert part.get_content_type() == sent.media_type
        assert part.get_payload(decode=True) == sent.body


def test_every_media_type_has_a_suffix():
    media_types = {m for format in FORMATS.values() for m in format.media_types}
    assert media_types <= set(SUFFIXES)
