"""Compares each stage around the network with the obvious way to do it, on one thread, in turn.

``python -m benchmarks.stages [--photo STREET.jpg ...] [--seconds N]``. The times are the process's
CPU time of a run (median over all photos' runs, and the quartiles), which other work on the machine
disturbs less than wall time; both are written, and each photo's own ratio. Without a photo a scene
is rendered."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from benchmarks import obvious
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, write_result
from benchmarks.timing import Timing, pool, time_in_turn
from serving import server as lifecycle
from serving.engines.onnxruntime import OnnxEngine
from serving.formats.class_statistics import class_statistics
from serving.formats.label_map import MaskOptions, MaskView
from serving.formats.registry import encode
from serving.imaging import decode as image
from serving.imaging import restore
from serving.imaging.geometry import Size, scale
from serving.models.repository import read_model
from training.datasets.synthetic import render_scene

SIZE = Size(1024, 2048)
SEED = 7
# What a network of 1024x2048 has in front of its last resize.
FINE = Size(SIZE.height // 4, SIZE.width // 4)

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Subjects:
    """One photo in every state that a stage starts from.

    Attributes:
        kind: what the photo is.
        encoded: as JPEG.
        photo: uint8 ``[1024,2048,3]``.
        network: height and width of the network's input.
        served: the network's logits for the whole photo, ``[C,h,w]``.
        fine: its logits for tiles of the photo in full size, put together: ``[C,256,512]``.
        noise: no two neighbours alike, ``[19,256,512]``.
        view: the label map of ``served``, with its confidence.
    """

    kind: str
    encoded: bytes
    photo: Pixels
    network: Size
    served: Logits
    fine: Logits
    noise: Logits
    view: MaskView


def make_subjects(photo: Path | None, repository: Path) -> Subjects:
    """Makes the subjects of a photo of 1024x2048 or a rendered scene, with the model ``icnet``."""
    if photo is None:
        kind, encoded = "a rendered scene", _jpeg(render_scene(SEED, SIZE.height, SIZE.width).image)
    else:
        kind, encoded = "a street photo", photo.read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    if pixels.shape[:2] != (SIZE.height, SIZE.width):
        raise SystemExit(f"{photo} has {pixels.shape[0]}x{pixels.shape[1]} pixels: expected {SIZE}")
    folder = read_model(repository / "icnet")
    threads = len(os.sched_getaffinity(0))
    graph = folder.graph(folder.versions[-1])
    engine = OnnxEngine(graph, instances=1, threads=threads, max_batch_size=1)
    network = engine.spec.size
    small = cv2.resize(pixels, (network.width, network.height), interpolation=cv2.INTER_LINEAR)
    served = _run(engine, small)
    fine = _run_on_tiles(engine, pixels)
    engine.close()
    noise = np.random.default_rng(SEED).standard_normal((19, FINE.height, FINE.width), np.float32)
    labels, confidence = restore.labels_and_confidence(served, network, SIZE)
    known = folder.labels
    view = MaskView(labels, known.names, known.colors, known.ignore_label, pixels, confidence)
    return Subjects(kind, encoded, pixels, network, served, fine, noise, view)


def mixed_share(logits: Logits) -> float:
    """Returns the share (0-1) of the cells whose four corners' labels differ."""
    winner = logits.argmax(axis=0)
    corner = winner[:-1, :-1]
    same = (corner == winner[1:, :-1]) & (corner == winner[:-1, 1:]) & (corner == winner[1:, 1:])
    return float(1 - same.mean())


def _run(engine: OnnxEngine, pixels: Pixels) -> Logits:
    logits = engine.run(pixels[None])[0].logits
    if logits is None:
        raise SystemExit("the model icnet has no output logits: export it with --head mask,logits")
    return logits


def _run_on_tiles(engine: OnnxEngine, photo: Pixels) -> Logits:
    """Runs tiles of the network's size side by side, the photo mirrored at its far edges."""
    size = engine.spec.size
    down, across = -(-photo.shape[0] // size.height), -(-photo.shape[1] // size.width)
    bottom, right = down * size.height - photo.shape[0], across * size.width - photo.shape[1]
    whole = cv2.copyMakeBorder(photo, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    rows = [
        np.concatenate([_run(engine, tile) for tile in np.split(band, across, axis=1)], axis=2)
        for band in np.split(whole, down, axis=0)
    ]
    together = np.concatenate(rows, axis=1)
    return np.ascontiguousarray(together[:, : FINE.height, : FINE.width])


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PACKAGES = ("numpy", "numba", "opencv-python", "onnxruntime", "isal", "pillow", "pycocotools")


@dataclass(frozen=True)
class Comparison:
    """One stage, done by this project and the obvious way."""

    stage: str
    ours: Callable[[], object]
    other: str
    theirs: Callable[[], object]


@dataclass(frozen=True)
class Row:
    """The figures of a comparison: CPU time in milliseconds; those named wall are wall time."""

    stage: str
    ours: float
    ours_quartiles: tuple[float, float]
    ours_wall: float
    other: str
    theirs: float
    theirs_quartiles: tuple[float, float]
    theirs_wall: float
    runs: int
    photo_ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Returns how many times faster this project is."""
        return self.theirs / self.ours

    def line(self) -> str:
        """Returns a row of the table."""
        mine, other = (
            f"{median:.1f} ({low:.1f}-{high:.1f})"
            for median, (low, high) in (
                (self.ours, self.ours_quartiles),
                (self.theirs, self.theirs_quartiles),
            )
        )
        ratio = f"{self.ratio:.1f}"
        if len(self.photo_ratios) > 1:
            ratio += f" ({min(self.photo_ratios):.1f}-{max(self.photo_ratios):.1f})"
        return f"| {self.stage} | {mine} | {other} | {self.other} | {ratio} |"


@dataclass(frozen=True)
class Agreement:
    """The number of pixels of 1024x2048 that differ from the float64 reference."""

    logits: str
    mixed_cells: float
    ours: int
    onnx_runtime: int


def comparisons(subjects: Subjects) -> list[Comparison]:
    """Returns all stages, in the order in which a request meets them."""
    view, network = subjects.view, subjects.network
    rows = [
        Comparison(
            "decode a JPEG",
            lambda: image.decode(subjects.encoded, max_megapixels=100),
            "Pillow",
            lambda: obvious.decode(subjects.encoded),
        ),
        Comparison(
            f"resize to {network}",
            lambda: scale(subjects.photo, network),
            "Pillow",
            lambda: obvious.resize(subjects.photo, network),
        ),
    ]
    for name, logits, model in logits_cases(subjects):
        rows += [
            Comparison(
                f"labels of {name}",
                partial(restore.labels_from_logits, logits, model, SIZE),
                "ONNX Runtime: Resize, ArgMax",
                obvious.restore_by_onnx(logits, SIZE, 1),
            ),
            Comparison(
                f"labels and confidence of {name}",
                partial(restore.labels_and_confidence, logits, model, SIZE),
                "the same, Softmax, ReduceMax",
                obvious.restore_both_by_onnx(logits, SIZE, 1),
            ),
        ]

    def encoded(name: str, options: MaskOptions | None = None) -> Callable[[], object]:
        return lambda: encode(view, name, options or MaskOptions())

    rows += [
        Comparison(
            "statistics with confidence",
            lambda: class_statistics(view.labels, view.names, view.confidence),
            "NumPy, a mask a class",
            lambda: obvious.statistics(view),
        ),
        Comparison("`rle`", encoded("rle"), "pycocotools", lambda: obvious.rle(view)),
        Comparison(
            "`polygons`", encoded("polygons"), "OpenCV contours", lambda: obvious.polygons(view)
        ),
        Comparison(
            "`polygons`, tolerance 2",
            encoded("polygons", MaskOptions(tolerance=2.0)),
            "and approxPolyDP",
            lambda: obvious.polygons(view, 2.0),
        ),
        Comparison("`png`", encoded("png"), "Pillow", lambda: obvious.png(view)),
        Comparison(
            "`overlay`", encoded("overlay"), "NumPy, Pillow", lambda: obvious.overlay_png(view)
        ),
        Comparison(
            "`overlay` as JPEG",
            encoded("overlay", MaskOptions(image="jpeg")),
            "NumPy, Pillow",
            lambda: obvious.overlay_jpeg(view),
        ),
        Comparison("`npy`", encoded("npy"), "a JSON list", lambda: obvious.json_list(view)),
    ]
    return rows


def logits_cases(subjects: Subjects) -> list[tuple[str, Logits, Size]]:
    """Returns name, logits, and the network's input size, which places them in the image."""
    served, fine, noise = subjects.served, subjects.fine, subjects.noise
    return [
        (shape_name(served), served, SIZE),
        (shape_name(fine), fine, SIZE),
        (f"noise {shape_name(noise)}", noise, SIZE),
    ]


def shape_name(logits: Logits) -> str:
    """Returns the shape as 11x88x120."""
    return "x".join(map(str, logits.shape))


def measure(comparison: Comparison, seconds: float) -> tuple[Timing, Timing]:
    """Times both in turn; returns ours, theirs."""
    mine, theirs = time_in_turn((comparison.ours, comparison.theirs), seconds)
    return mine, theirs


def summarize(comparison: Comparison, measured: Sequence[tuple[Timing, Timing]]) -> Row:
    """Sums up one stage over all photos, each of which was measured separately."""
    mine, theirs = (pool(timings) for timings in zip(*measured, strict=True))

    def quartiles(timing: Timing) -> tuple[float, float]:
        return timing.cpu_ms(25), timing.cpu_ms(75)

    return Row(
        comparison.stage,
        mine.cpu_ms(),
        quartiles(mine),
        mine.wall_ms(),
        comparison.other,
        theirs.cpu_ms(),
        quartiles(theirs),
        theirs.wall_ms(),
        len(mine.walls),
        tuple(other.cpu_ms() / own.cpu_ms() for own, other in measured),
    )


def compare_labels(name: str, logits: Logits, model: Size) -> Agreement:
    """Compares both ways with the float64 reference."""
    expected = restore.labels_reference(logits, model, SIZE)

    def differing(labels: npt.NDArray[np.uint8]) -> int:
        return int((labels != expected).sum())

    return Agreement(
        name,
        round(mixed_share(logits), 4),
        differing(restore.labels_from_logits(logits, model, SIZE)),
        differing(obvious.restore_by_onnx(logits, SIZE, 1)()),
    )


def main(
    photo: Annotated[
        list[Path] | None, typer.Option(help=f"Photo of {SIZE}; repeat the option for several.")
    ] = None,
    repository: Annotated[Path, typer.Option(help="Model repository with the model icnet.")] = Path(
        "model_repository"
    ),
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds for each stage of each photo.")
    ] = 3.0,
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints a row for each stage, and writes all of them."""
    machine = read_machine(PACKAGES)
    cv2.setNumThreads(1)
    lifecycle.warm_stages()
    kinds, stages, agreements = [], [], []
    photos: list[Path | None] = [*photo] if photo else [None]
    for path in photos:
        subjects = make_subjects(path, repository)
        kinds.append(subjects.kind)
        stages.append([(stage, measure(stage, seconds)) for stage in comparisons(subjects)])
        agreements += [compare_labels(*case) for case in logits_cases(subjects)]
    rows = [
        summarize(of_photos[0][0], [measured for _, measured in of_photos])
        for of_photos in zip(*stages, strict=True)
    ]
    # Noise is the same for all photos.
    agreements = list(dict.fromkeys(agreements))
    typer.echo("| stage | here, ms | obvious, ms | the obvious way | ratio |")
    typer.echo("|---|---|---|---|---|")
    for row in rows:
        typer.echo(row.line())
    for agreement in agreements:
        typer.echo(
            f"{agreement.logits}: {100 * agreement.mixed_cells:.1f} % of the cells mixed; of "
            f"{SIZE} pixels {agreement.ours} differ from float64 here, "
            f"{agreement.onnx_runtime} by ONNX Runtime"
        )
    content = {
        "subjects": f"{', '.join(kinds)} of {SIZE}; logits of {FINE} are of tiles put together",
        "threads": 1,
        "rows": rows,
        "agreement": agreements,
    }
    typer.echo(str(write_result("stages", content, machine, results)))


if __name__ == "__main__":
    typer.run(main)
