"""Compares ratios of two ways to do the same with stored ones, to notice what became slower.

``make bench`` measures about three minutes and compares with ``benchmarks/results/guard.json``;
``--update`` stores what it finds. Ratios carry over from machine to machine far better than times,
but not from a CPU with VNNI to one without: a file of another kind of machine is still compared,
with a note. A ratio has moved where the interquartile range of its turns is entirely outside
the stored one, widened by a tenth.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.engines.graphs import SEED, built_graph, network_at, plain_model
from benchmarks.machine import RESULTS, Machine, read_machine, write_result
from benchmarks.obvious import png as obvious_png
from benchmarks.obvious import restore_by_onnx
from benchmarks.timing import Spread, ratios, time_in_turn
from export.symbols.find import NetworkName
from serving import server as lifecycle
from serving.engines.acceleration import Acceleration
from serving.engines.onnxruntime import OnnxEngine
from serving.formats.label_map import MaskView
from serving.formats.registry import encode
from serving.imaging import decode as image
from serving.imaging import restore
from serving.imaging.geometry import Size
from serving.palette import default_palette

NETWORK = NetworkName("icnet", "resnet50", 1.0, "citys")
CLASSES = 19
MARGIN = 0.1
Run = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Two ways to do the same; the guarded ratio is the first one's time over the second one's.

    ``cpu`` compares processor time: of work on one thread it is the steadier of the two.
    """

    name: str
    ours: Run
    other: Run
    cpu: bool = False


@dataclass(frozen=True)
class Finding:
    """A ratio now and as stored; ``moved`` is ``slower``, ``faster`` or empty."""

    name: str
    now: Spread
    before: Spread | None
    moved: str

    def line(self) -> str:
        """Returns the line for the terminal."""
        known = "new" if self.before is None else str(self.before)
        return f"{self.name:<52} {self.now!s:<24} before {known:<24} {self.moved.upper()}"


def pairs(size: Size, threads: int) -> list[Pair]:
    """Returns the guarded pairs, on ICNet-ResNet50 at ``size``."""
    served = {
        precision: _open(built_graph(NETWORK, CLASSES, size.height, size.width, precision), threads)
        for precision in ("fp32", "int8")
    }
    with tempfile.TemporaryDirectory() as folder:
        plain = _open(_plain(size, Path(folder)), threads, winograd=False)
    pixels = np.random.default_rng(SEED).integers(0, 256, (size.height, size.width, 3), np.uint8)
    batch = pixels[None]
    logits = _smooth_logits(size)
    labels = restore.labels_from_logits(logits, size, size)
    names = tuple(f"class{k}" for k in range(CLASSES))
    view = MaskView(labels, names, default_palette(CLASSES), 255, None, None)
    encoded = cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (9, 9), 4))[1].tobytes()
    fp32, int8 = served["fp32"], served["int8"]

    def whole(engine: OnnxEngine) -> Run:
        """Returns a run from JPEG to PNG, as a request makes it, without a server."""

        def run() -> bytes:
            photo = image.decode(encoded, max_megapixels=100)
            found = engine.run(photo[None]).logits
            assert found is not None
            made = restore.labels_from_logits(found[0], size, size)
            return encode(MaskView(made, names, view.colors, 255, None, None), "png").body

        return run

    return [
        Pair("fp32 network / plain export", lambda: fp32.run(batch), lambda: plain.run(batch)),
        Pair("int8 network / fp32 network", lambda: int8.run(batch), lambda: fp32.run(batch)),
        Pair("int8 network / plain export", lambda: int8.run(batch), lambda: plain.run(batch)),
        Pair("JPEG to PNG, int8 / the int8 network alone", whole(int8), lambda: int8.run(batch)),
        Pair("labels of logits / ONNX Runtime's Resize, ArgMax",
             lambda: restore.labels_from_logits(logits, size, size),
             restore_by_onnx(logits, size, 1), cpu=True),
        Pair("indexed PNG / Pillow's", lambda: encode(view, "png"), lambda: obvious_png(view),
             cpu=True),
    ]  # fmt: skip


def measure(chosen: list[Pair], seconds: float) -> dict[str, Spread]:
    """Returns the ratios of all pairs, measured for ``seconds`` each."""
    found = {}
    for pair in chosen:
        ours, other = time_in_turn((pair.ours, pair.other), seconds)
        base = (ours.cpus, other.cpus) if pair.cpu else (ours.walls, other.walls)
        found[pair.name] = ratios(*base)
    return found


def compare(now: dict[str, Spread], before: dict[str, Spread]) -> list[Finding]:
    """Returns each ratio beside the stored one."""
    return [
        Finding(name, spread, before.get(name), _moved(spread, before.get(name)))
        for name, spread in now.items()
    ]


def read_stored(path: Path) -> tuple[dict[str, Spread], tuple[str, ...]]:
    """Reads the ratios of a result file, and the CPU features of its machine.

    Raises:
        ValueError: the file holds no ratios.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        stored = {name: Spread(**spread) for name, spread in content["ratios"].items()}
        return stored, tuple(content["machine"]["features"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold ratios ({error}); create it again with --update"
        ) from None


def guard(
    stored: Annotated[Path, typer.Option(help="File of the stored ratios.")] = RESULTS
    / "guard.json",
    update: Annotated[bool, typer.Option("--update", help="Store the new ratios.")] = False,
    size: Annotated[
        str, typer.Option(help="Image size, HEIGHTxWIDTH; ratios depend on it.")
    ] = "512x1024",
    seconds: Annotated[float, typer.Option(min=0, help="Seconds for each ratio.")] = 20.0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a ratio moved.")] = False,
) -> None:
    """Prints every ratio, and which of them moved beyond their spread."""
    machine = read_machine()
    cv2.setNumThreads(1)
    lifecycle.warm_stages()
    try:
        before, features = ({}, ()) if update or not stored.exists() else read_stored(stored)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    threads = len(os.sched_getaffinity(0))
    now = measure(pairs(Size.parse(size), threads), seconds)
    findings = compare(now, before)
    for finding in findings:
        typer.echo(finding.line())
    typer.echo(machine.line())
    _report_differences(machine, before, features)
    if update or not stored.exists():
        content = {"size": size, "seconds": seconds, "ratios": now}
        typer.echo(f"stored in {write_result(stored.stem, content, machine, stored.parent)}")
    moved = [finding for finding in findings if finding.moved]
    if not moved:
        typer.echo("no ratio moved beyond its spread")
    elif strict:
        raise typer.Exit(1)


def _report_differences(
    machine: Machine, before: dict[str, Spread], features: tuple[str, ...]
) -> None:
    if before and tuple(features) != machine.features:
        typer.echo(f"the stored ratios are of a CPU with {', '.join(features)}")
    if machine.load > machine.cores / 2:
        typer.echo(f"the machine was busy (load {machine.load}): measure again when it is quiet")


def _moved(now: Spread, before: Spread | None) -> str:
    if before is None:
        return ""
    if now.low > before.high * (1 + MARGIN):
        return "slower"
    if now.high < before.low * (1 - MARGIN):
        return "faster"
    return ""


def _open(path: Path, threads: int, *, winograd: bool = True) -> OnnxEngine:
    acceleration = Acceleration(winograd=winograd)
    return OnnxEngine(
        path, instances=1, threads=threads, max_batch_size=1, acceleration=acceleration
    )


def _plain(size: Size, folder: Path) -> Path:
    """Writes the plain export as a file into ``folder``."""
    symbol, weights = network_at(NETWORK, CLASSES, size.height, size.width)
    path = folder / "plain.onnx"
    path.write_bytes(plain_model(symbol, weights, size.height, size.width).SerializeToString())
    return path


def _smooth_logits(size: Size) -> npt.NDArray[np.float32]:
    """Returns logits at a quarter of the size whose winners form patches, as a street's do."""
    shape = (size.width // 32 + 1, size.height // 32 + 1)
    noise = np.random.default_rng(SEED).random((CLASSES, *shape[::-1]), np.float32)
    quarter = (max(1, size.width // 4), max(1, size.height // 4))
    return np.stack([cv2.resize(plane, quarter, interpolation=cv2.INTER_CUBIC) for plane in noise])


if __name__ == "__main__":
    typer.run(guard)
