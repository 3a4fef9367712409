"""Runs mutants by number: images in child processes, requests against a server, faults kept."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Container, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import image_mutants
import protocol_mutants
from protocol_target import ProtocolTarget, ServerGone
from reduction import reduced_bytes, reduced_image

from tests.support.decoding import DECODER, Decoded, DecoderProcess, memory_checks
from tests.support.odd_images.reference import largest_difference

# Mutant N is of the kind N % 20, so every stretch of numbers tries all of them.
SCHEDULE = (
    "PNG", "infer_json", "JPEG", "grpc", "WEBP", "infer_binary", "PNG", "BMP", "control", "JPEG",
    "WEBP", "multipart", "PNG", "grpc", "BMP", "options", "JPEG", "WEBP", "heads", "PNG",
)  # fmt: skip
# For images of a megapixel at most.
MAX_CPU_S, MAX_RESIDENT_BYTES, MAX_ADDRESS_BYTES = 3.0, 128 << 20, 512 << 20
# Reducing takes tens of seconds: of each kind of mutant and fault only so many are reduced.
REDUCED_EACH = 3
# A good request, and a look at the server's health, after so many mutants.
HEALTH_EVERY = 20


@dataclass(frozen=True)
class Finding:
    """A mutant and what it did; ``verdict`` starts with the kind of fault and a colon."""

    number: int
    kind: str
    verdict: str


@dataclass
class Report:
    """What a stretch of mutants came to: counts by kind and outcome, and the faults."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def kind_of(number: int) -> str:
    """What mutant ``number`` is a mutant of."""
    return SCHEDULE[number % len(SCHEDULE)]


class ImageTarget:
    """Two decoder processes whose new memory is filled differently."""

    def __init__(self, decoder: str = DECODER, wait_s: float = 30.0) -> None:
        self._decoders = [
            DecoderProcess(decoder, environment=memory_checks(perturb), wait_s=wait_s)
            for perturb in (0x55, 0xAA)
        ]

    def close(self) -> None:
        """Ends both processes."""
        for decoder in self._decoders:
            decoder.restart()

    def verdict(self, data: bytes) -> tuple[str, str]:
        """What came of a file (``pixels``, ``refused``), and what is wrong with it, if anything."""
        one, other = (decoder.decode(data) for decoder in self._decoders)
        wrong = _fault_of(one) or _fault_of(other)
        if not wrong and one.kind != other.kind:
            wrong = f"unsteady: {one.kind} and {other.kind} {one.text or other.text}"
        if not wrong and one.pixels is not None and other.pixels is not None:
            difference = largest_difference(one.pixels, other.pixels)
            if difference:
                wrong = f"unwritten: pixels of two runs differ by up to {difference}"
        if wrong:
            # What it has done to its memory must not be the next file's fault.
            self.close()
        return one.kind, wrong


def _fault_of(found: Decoded) -> str:
    if found.kind in ("crash", "hang", "wrong_error"):
        return f"{found.kind}: {found.text[-2000:]}"
    if found.cpu_s > MAX_CPU_S:
        return f"slow: {found.cpu_s:.1f} s"
    if found.resident_bytes > MAX_RESIDENT_BYTES:
        return f"memory: {found.resident_bytes >> 20} MiB"
    if found.address_bytes > MAX_ADDRESS_BYTES:
        return f"memory: {found.address_bytes >> 20} MiB of addresses"
    if found.kind == "refused" and not found.text.partition(": ")[2]:
        return "text: refused without a reason"
    return ""


def run_images(
    numbers: Iterable[int], crashes: Path | None = None, decoder: str = DECODER
) -> Report:
    """Decodes the image mutants of these numbers.

    Faults are reduced and kept in ``crashes``, where it is given.
    """
    report, target = Report(), ImageTarget(decoder)
    try:
        for number in numbers:
            format = kind_of(number)
            data = image_mutants.mutant(format, number)
            outcome, wrong = target.verdict(data)
            label = _label(wrong)
            report.counts[format, label or outcome] += 1
            if not wrong:
                continue
            report.findings.append(Finding(number, format, wrong))
            if crashes is not None:
                small = data
                if report.counts[format, label] <= REDUCED_EACH:
                    small = reduced_image(
                        format, data, lambda found, label=label: _same(target, found, label)
                    )
                _keep(crashes, number, f".{format.lower()}", wrong, data, small)
    finally:
        target.close()
    return report


def _label(verdict: str) -> str:
    return verdict.partition(":")[0]


def _same(target: ImageTarget, data: bytes, label: str) -> bool:
    return _label(target.verdict(data)[1]) == label


def run_protocols(
    numbers: Iterable[int], crashes: Path | None = None, most: int | None = None
) -> Report:
    """Sends the protocol mutants of these numbers to a server; one that falls ill is replaced.

    ``most`` findings end the run: each may cost a new server.
    """
    report = Report()
    recent: list[int] = []
    with ExitStack() as stack:
        target = stack.enter_context(ProtocolTarget())

        def anew() -> ProtocolTarget:
            stack.pop_all().close()
            return stack.enter_context(ProtocolTarget())

        for number in numbers:
            recent.append(number)
            wrong = _sent(target, number)
            report.counts[kind_of(number), _label(wrong) or "answered"] += 1
            if wrong:
                _found(report, crashes, number, wrong)
            if wrong or len(recent) == HEALTH_EVERY:
                sick = _health(target)
                # The traceback of a wrong answer is neither a second fault nor an illness.
                if sick and not (wrong and _label(sick) == "log"):
                    target = anew()
                    if not wrong:
                        _found(report, crashes, _guilty(target, recent), sick)
                        target = anew()
                recent = []
            if most is not None and len(report.findings) >= most:
                break
    return report


def _sent(target: ProtocolTarget, number: int) -> str:
    try:
        return target.verdict(protocol_mutants.mutant(kind_of(number), number))
    except ServerGone as error:
        return f"gone: {str(error)[-2000:]}"


def _health(target: ProtocolTarget) -> str:
    try:
        return target.health()
    except (ServerGone, OSError) as error:
        return f"gone: {str(error)[-2000:]}"


def _guilty(target: ProtocolTarget, numbers: list[int]) -> int:
    """The first of these mutants after which a fresh server is ill; the last where none is."""
    for number in numbers:
        _sent(target, number)
        if _health(target):
            return number
    return numbers[-1]


def _found(report: Report, crashes: Path | None, number: int, wrong: str) -> None:
    report.findings.append(Finding(number, kind_of(number), wrong))
    if crashes is None:
        return
    mutant = protocol_mutants.mutant(kind_of(number), number)
    if isinstance(mutant, protocol_mutants.HttpMutant):
        data = small = mutant.data
        if report.counts[kind_of(number), _label(wrong)] <= REDUCED_EACH:
            small = _reduced_request(mutant, wrong)
    else:
        data = small = b"".join(mutant.messages)
        wrong = f"{wrong}\n{mutant.method}, {len(mutant.messages)} messages"
    _keep(crashes, number, f".{kind_of(number)}", wrong, data, small)


def _reduced_request(mutant: protocol_mutants.HttpMutant, wrong: str) -> bytes:
    """Only what a wrong answer shows; a server that dies or gets ill keeps its whole request."""
    label = _label(wrong)
    if label not in ("status", "body", "closed"):
        return mutant.data
    head, separator, body = mutant.data.partition(b"\r\n\r\n")

    with ProtocolTarget() as target:

        def fails(found: bytes) -> bool:
            lines = [
                b"Content-Length: %d" % len(found)
                if line.lower().startswith(b"content-length")
                else line
                for line in head.split(b"\r\n")
            ]
            data = b"\r\n".join(lines) + separator + found
            try:
                verdict = target.verdict(protocol_mutants.HttpMutant(data, mutant.framed))
            except ServerGone:
                return False
            return _label(verdict) == label

        return head + separator + reduced_bytes(body, fails, 60)


def _keep(crashes: Path, number: int, ending: str, wrong: str, data: bytes, small: bytes) -> None:
    """The reduced file, the mutant as it was, and what happened."""
    crashes.mkdir(parents=True, exist_ok=True)
    (crashes / f"{number}{ending}").write_bytes(small)
    (crashes / f"{number}.whole{ending}").write_bytes(data)
    (crashes / f"{number}.txt").write_text(wrong + "\n", "utf-8", "replace")


def run(numbers: range, crashes: Path | None = None, kinds: Container[str] = SCHEDULE) -> Report:
    """The mutants of these numbers that are of one of the kinds."""
    chosen = [number for number in numbers if kind_of(number) in kinds]
    images = [number for number in chosen if kind_of(number) in image_mutants.FORMATS]
    requests = [number for number in chosen if kind_of(number) not in image_mutants.FORMATS]
    report = run_images(images, crashes)
    others = run_protocols(requests, crashes) if requests else Report()
    return Report(report.counts + others.counts, report.findings + others.findings)


class Progress:
    """Where a long run stands, in a file: it goes on there after it was stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.next_number: int = found.get("next", 0)
        self.counts: Counter[str] = Counter(found.get("counts", {}))
        self.findings: list[list[object]] = found.get("findings", [])
        self.seconds: float = found.get("seconds", 0.0)

    def add(self, report: Report, next_number: int, seconds: float) -> None:
        """Takes a block of mutants in, and writes the file."""
        self.next_number = next_number
        self.seconds += seconds
        for (kind, outcome), count in report.counts.items():
            self.counts[f"{kind} {outcome}"] += count
        self.findings += [[f.number, f.kind, f.verdict[:200]] for f in report.findings]
        state = {
            "next": self.next_number,
            "seconds": round(self.seconds, 1),
            "counts": dict(sorted(self.counts.items())),
            "findings": self.findings,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        partial.replace(self._path)


def run_blocks(
    start: int | None,
    count: int,
    folder: Path,
    block: int = 1000,
    kinds: Container[str] = SCHEDULE,
) -> Iterable[tuple[Progress, float]]:
    """Blocks of mutants up to number ``count`` (from ``start``, or where the last run stopped).

    Yields after each, with its seconds; ``folder`` holds ``progress.json`` and ``crashes/``.
    """
    path = folder / "progress.json"
    if start is not None:
        path.unlink(missing_ok=True)
    progress = Progress(path)
    first = progress.next_number if start is None else start
    end = count if start is None else start + count
    for begin in range(first, end, block):
        numbers = range(begin, min(begin + block, end))
        began = time.monotonic()
        report = run(numbers, folder / "crashes", kinds)
        seconds = time.monotonic() - began
        progress.add(report, numbers.stop, seconds)
        yield progress, seconds
