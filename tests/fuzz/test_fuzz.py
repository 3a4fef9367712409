"""5,000 mutants of every image format and every protocol message; ``make fuzz`` runs 200,000.

The numbers are fixed, so a failure stays one: ``tests/fuzz/run.py --start N --count 1`` repeats it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import image_mutants
import protocol_mutants
import pytest
from campaign import SCHEDULE, Finding, ImageTarget, Progress, Report, kind_of, run_blocks
from campaign import run_images as run_image_mutants
from campaign import run_protocols as run_protocol_mutants
from mutant_values import IMAGE
from protocol_target import ProtocolTarget
from reduction import reduced_bytes, reduced_image

from tests.support.odd_images import png
from tests.support.odd_images.corpus import of_format

MUTANTS = range(5000)
IMAGES = [number for number in MUTANTS if kind_of(number) in image_mutants.FORMATS]
REQUESTS = [number for number in MUTANTS if kind_of(number) in protocol_mutants.KINDS]


def shown(findings: list[Finding]) -> str:
    lines = (f"{one.number} {one.kind}: {one.verdict[:1500]}" for one in findings[:10])
    return "\n".join((f"{len(findings)} findings", *lines))


@pytest.mark.slow
@pytest.mark.parametrize("format", image_mutants.FORMATS)
def test_no_mutant_of_an_image_does_harm(format: str) -> None:
    """Right errors, bounded time and memory, no byte that was never written, no crash."""
    numbers = [number for number in IMAGES if kind_of(number) == format]
    report = run_image_mutants(numbers)
    assert not report.findings, shown(report.findings)
    assert report.total == len(numbers)
    # Mutants that are all refused, or all read, would test little.
    assert report.counts[format, "pixels"] > len(numbers) // 20
    assert report.counts[format, "refused"] > len(numbers) // 5


@pytest.mark.slow
def test_no_mutant_of_a_request_does_harm() -> None:
    """An answer of 2xx or 4xx, no 500, no INTERNAL; the server answers good requests all along."""
    report = run_protocol_mutants(REQUESTS, most=20)
    assert not report.findings, shown(report.findings)
    assert {kind for kind, _ in report.counts} == set(protocol_mutants.KINDS)


def test_every_kind_has_its_share() -> None:
    assert {*SCHEDULE} == {*image_mutants.FORMATS, *protocol_mutants.KINDS}
    assert len(IMAGES) + len(REQUESTS) == len(MUTANTS)
    assert min(Counter(map(kind_of, MUTANTS)).values()) >= 250


@pytest.mark.parametrize("format", image_mutants.FORMATS)
def test_an_image_mutant_is_a_function_of_its_number(format: str) -> None:
    files = [image_mutants.mutant(format, number) for number in range(50)]
    assert files == [image_mutants.mutant(format, number) for number in range(50)]
    assert len(set(files)) == 50


@pytest.mark.parametrize("kind", protocol_mutants.KINDS)
def test_a_request_mutant_is_a_function_of_its_number(kind: str) -> None:
    requests = [protocol_mutants.mutant(kind, number) for number in range(50)]
    assert requests == [protocol_mutants.mutant(kind, number) for number in range(50)]
    assert len(set(requests)) > 30


@pytest.mark.parametrize("format", image_mutants.FORMATS)
def test_pieces_make_the_file_again(format: str) -> None:
    for item in of_format(format):
        if item.duty == "decode" and "behind the end" not in item.name:
            pieces = image_mutants.split(format, item.data)
            assert image_mutants.join(format, pieces) == item.data, item.name


def test_a_fault_is_found_reduced_and_kept(tmp_path: Path) -> None:
    """The decoder of this test dies of every PNG with a text in it."""
    number = next(n for n in MUTANTS if kind_of(n) == "PNG" and _has_text(n))
    report = run_image_mutants([number], tmp_path, "broken_decoders:die_of_text")
    assert [found.number for found in report.findings] == [number]
    assert report.findings[0].verdict == "crash: SIGSEGV"
    small = (tmp_path / f"{number}.png").read_bytes()
    assert small == png.SIGNATURE + png.chunk(b"tEXt")
    whole = (tmp_path / f"{number}.whole.png").read_bytes()
    assert whole == image_mutants.mutant("PNG", number)
    assert (tmp_path / f"{number}.txt").read_text().startswith("crash: SIGSEGV")


def _has_text(number: int) -> bool:
    return any(
        p.kind == b"tEXt" for p in image_mutants.split("PNG", image_mutants.mutant("PNG", number))
    )


@pytest.mark.parametrize(
    ("decoder", "label"),
    [
        ("leave_unwritten", "unwritten"),
        ("take_memory", "memory"),
        ("raise_another_error", "wrong_error"),
    ],
)
def test_each_kind_of_harm_has_its_name(decoder: str, label: str) -> None:
    target = ImageTarget(f"broken_decoders:{decoder}")
    try:
        assert target.verdict(b"any")[1].startswith(label)
    finally:
        target.close()


def test_reducing_leaves_what_the_fault_needs() -> None:
    assert reduced_bytes(b"a" * 40 + b"xyz" + b"b" * 40, lambda data: b"y" in data) == b"y"
    good = png.png(png.samples_of(9, 9, png.RGB, 8), png.RGB, 8, before=png.chunk(b"tEXt", b"a\0b"))
    small = reduced_image("PNG", good, lambda data: b"tEXt" in data)
    assert small == png.SIGNATURE + png.chunk(b"tEXt")


def test_answers_of_the_server_are_judged() -> None:
    """An answer passes, an error of two fields too; then the server is as healthy as before."""
    http, image = protocol_mutants.http, IMAGE
    with ProtocolTarget() as target:
        for data in (
            http("/v2/models/bands/segment?format=raw", image),
            http("/v2/models/nope/segment", image),
        ):
            assert target.verdict(protocol_mutants.HttpMutant(data)) == ""
        assert target.health() == ""


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\nInternal Server Error", "status"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status"),
        (b"", "closed"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nNot Found", "body"),
        (b'HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\n\r\n{"detail": 1}', "body"),
        (b'HTTP/1.1 400 B\r\nContent-Type: application/json\r\n\r\n{"error":"a","code":"b"}', ""),
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
    ],
)
def test_wrong_answers_are_noticed(answer: bytes, label: str) -> None:
    class Canned(ProtocolTarget):
        def exchange(self, data: bytes, *, framed: bool = True) -> bytes:
            return answer

    verdict = Canned().verdict(protocol_mutants.HttpMutant(b"anything"))
    assert verdict.partition(":")[0] == label


def test_a_long_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    numbers = [progress.next_number for progress, _ in run_blocks(0, 40, tmp_path, block=20)]
    assert numbers == [20, 40]
    state = json.loads((tmp_path / "progress.json").read_text())
    assert state["next"] == 40
    assert sum(state["counts"].values()) == 40
    again = [progress.next_number for progress, _ in run_blocks(None, 50, tmp_path, block=20)]
    assert again == [50]
    assert sum(Progress(tmp_path / "progress.json").counts.values()) == 50


def test_a_report_is_counted_once(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.json")
    report = Report(Counter({("PNG", "pixels"): 3}), [Finding(7, "PNG", "crash: SIGSEGV")])
    progress.add(report, 20, 1.5)
    found = Progress(tmp_path / "progress.json")
    assert (found.next_number, found.seconds) == (20, 1.5)
    assert found.counts == {"PNG pixels": 3}
    assert found.findings == [[7, "PNG", "crash: SIGSEGV"]]
