"""Numbers in strangers' texts: what Python's int and float would take besides is refused."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest
from serving.http.body import parse_timeout
from serving.http.options import OPTIONS, read_options, read_query
from serving.palette import LabelSet
from serving.parsing import find_integer, parse_version, read_decimal, read_integer, read_length
from serving.requests import class_ids, read_augmentation

ODD = [
    "", " ", "²", "١", "１", "1_0", "+1", "-1", "0x1", "1e0", "nan", "inf", "-inf", "1e999",
    "infinity", "1" * 5000, "9" * 20, "1.", "1\n", "\0", "1 2", "¼",
]  # fmt: skip
NO_DECIMAL = [text for text in ODD if text != "1."]


@pytest.mark.parametrize("text", ODD)
def test_odd_integers(text: str) -> None:
    assert find_integer(text) is None
    with pytest.raises(InvalidRequest, match=r"^n: .* an integer from 0 to 9$"):
        read_integer(text, "n", 0, 9)
    if text:
        with pytest.raises(InvalidRequest, match="expected a positive integer"):
            parse_version(text)
    with pytest.raises(InvalidRequest):
        read_options({"quality": [text]}, "")
    with pytest.raises(InvalidRequest):
        read_options({"min_area": [text]}, "")


@pytest.mark.parametrize("text", NO_DECIMAL)
def test_odd_decimals(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^n: .* a decimal number from 0 to 9$"):
        read_decimal(text, "n", 0, 9)
    if text.strip() == text:
        with pytest.raises(InvalidRequest):
            parse_timeout(text)
    for option in ("opacity", "tolerance"):
        with pytest.raises(InvalidRequest):
            read_options({option: [text]}, "")
    with pytest.raises(InvalidRequest, match="tta"):
        read_augmentation((text if text.strip() == text else "x",))


def test_ranges_are_inclusive_and_said() -> None:
    assert (read_integer("1", "n", 1, 100), read_integer("100", "n", 1, 100)) == (1, 100)
    assert read_integer("007", "n", 1, 100) == 7
    for text in ("0", "101", "999999999999"):
        with pytest.raises(InvalidRequest, match="from 1 to 100"):
            read_integer(text, "n", 1, 100)
    assert [read_decimal(t, "n", 0, 1) for t in ("0", "1", ".5", "1.", "0.25")] == [
        0, 1, 0.5, 1, 0.25,
    ]  # fmt: skip
    with pytest.raises(InvalidRequest, match="from 0 to 1"):
        read_decimal("1.0000001", "n", 0, 1)


def test_lengths_may_have_leading_zeros() -> None:
    assert read_length("0" * 100 + "12", "Content-Length") == 12
    assert read_length("0", "Content-Length") == read_length("000", "Content-Length") == 0
    for text in ("", "-1", "1 ", "²", "9" * 30):
        with pytest.raises(InvalidRequest, match="Content-Length"):
            read_length(text, "Content-Length")


def test_versions() -> None:
    assert parse_version("") is None
    assert (parse_version("1"), parse_version("999999999")) == (1, 999_999_999)
    for text in ("0", "01", "1000000000"):
        with pytest.raises(InvalidRequest, match="1 to 999999999"):
            parse_version(text)


def test_timeouts() -> None:
    assert parse_timeout(None) is None
    assert parse_timeout("250") == parse_timeout(" 250.0 ") == 0.25
    for text in ("0", "0.0", "1000000000"):
        with pytest.raises(InvalidRequest, match="X-Timeout-Ms"):
            parse_timeout(text)


def test_class_ids_are_names_or_ids() -> None:
    labels = LabelSet(("Road", "sky", "2²"), ((0, 0, 0),) * 3, 255)
    assert class_ids(("road", " SKY ", "2²", "0"), labels) == (0, 1, 2, 0)
    for wrong in ("3", "²", "9" * 5000, "-1", "1_0"):
        with pytest.raises(InvalidRequest, match="from 0 to 2; known: Road"):
            class_ids((wrong,), labels)
    with pytest.raises(InvalidRequest, match="expected at most 256"):
        class_ids(("0",) * 257, labels)


def test_queries_are_utf_8_however_they_are_written() -> None:
    for query in ("classes=дорога", "classes=%D0%B4%D0%BE%D1%80%D0%BE%D0%B3%D0%B0"):
        assert read_query(query.encode()) == {"classes": ["дорога"]}
    with pytest.raises(InvalidRequest, match="more than 64 options"):
        read_query(b"format=png&" * 65 + b"format=png")
    with pytest.raises(InvalidRequest, match="unknown option formt; known: format"):
        read_query(b"formt=png")


def test_options_are_bounded_before_they_are_split() -> None:
    for option in OPTIONS:
        with pytest.raises(InvalidRequest, match=f"{option}: 4097 characters"):
            read_options({option: ["1" + "," * 4096]}, "")
    for option in ("classes", "tta"):
        with pytest.raises(InvalidRequest, match="expected at most 256"):
            read_options({option: ["1," * 300]}, "")
    with pytest.raises(InvalidRequest, match="given 2 times"):
        read_options({"size": ["model", "original"]}, "")
