"""Each stage around the network against the obvious way to do it, one thread, in turn.

``python -m benchmarks.stages [--photo STREET.jpg ...] [--seconds N]``. The times are
the process's CPU time a run (median over all photos' runs, and the quartiles), which other work on
the machine disturbs less than wall time; both are written, and each photo's own ratio. Without a
photo a scene is rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer

from benchmarks import obvious
from benchmarks.machine import RESULTS, read_machine, write_result
from benchmarks.stage_subjects import FINE, SIZE, Logits, Subjects, make_subjects, mixed_share
from benchmarks.timing import Turns, pool, time_in_turn
from serving import server as lifecycle
from serving.formats.class_statistics import class_statistics
from serving.formats.label_map import MaskOptions
from serving.formats.registry import encode
from serving.imaging import decode as image
from serving.imaging import restore
from serving.imaging.geometry import Size, scale

PACKAGES = ("numpy", "numba", "opencv-python", "onnxruntime", "isal", "pillow", "pycocotools")


@dataclass(frozen=True)
class Comparison:
    """One stage done by this project and in the obvious way."""

    stage: str
    ours: Callable[[], object]
    other: str
    theirs: Callable[[], object]


@dataclass(frozen=True)
class Row:
    """What a comparison came to; times in milliseconds, CPU time unless named wall."""

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
        """How many times faster."""
        return self.theirs / self.ours

    def line(self) -> str:
        """A row of the table."""
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
    """Pixels of 1024x2048 that differ from the float64 reference."""

    logits: str
    mixed_cells: float
    ours: int
    onnx_runtime: int


def comparisons(subjects: Subjects) -> list[Comparison]:
    """All stages, in the order in which a request meets them."""
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
        rows.append(
            Comparison(
                f"labels of {name}",
                lambda logits=logits, model=model: restore.labels_from_logits(logits, model, SIZE),
                "ONNX Runtime: Resize, ArgMax",
                obvious.restore_by_onnx(logits, SIZE, 1),
            )
        )
        rows.append(
            Comparison(
                f"labels and confidence of {name}",
                lambda logits=logits, model=model: restore.labels_and_confidence(
                    logits, model, SIZE
                ),
                "the same, Softmax, ReduceMax",
                obvious.restore_both_by_onnx(logits, SIZE, 1),
            )
        )

    def form(name: str, **options: float | str | bool) -> Callable[[], object]:
        chosen = MaskOptions(**options)  # type: ignore[arg-type]
        return lambda: encode(view, name, chosen)

    rows += [
        Comparison(
            "statistics with confidence",
            lambda: class_statistics(view.labels, view.names, view.confidence),
            "NumPy, a mask a class",
            lambda: obvious.statistics(view),
        ),
        Comparison("`rle`", form("rle"), "pycocotools", lambda: obvious.rle(view)),
        Comparison(
            "`polygons`", form("polygons"), "OpenCV contours", lambda: obvious.polygons(view)
        ),
        Comparison(
            "`polygons`, tolerance 2",
            form("polygons", tolerance=2.0),
            "and approxPolyDP",
            lambda: obvious.polygons(view, 2.0),
        ),
        Comparison("`png`", form("png"), "Pillow", lambda: obvious.png(view)),
        Comparison(
            "`overlay`", form("overlay"), "NumPy, Pillow", lambda: obvious.overlay_png(view)
        ),
        Comparison(
            "`overlay` as JPEG",
            form("overlay", image="jpeg"),
            "NumPy, Pillow",
            lambda: obvious.overlay_jpeg(view),
        ),
        Comparison("`npy`", form("npy"), "a JSON list", lambda: obvious.json_list(view)),
    ]
    return rows


def logits_cases(subjects: Subjects) -> list[tuple[str, Logits, Size]]:
    """Name, logits, and the size of the network's input, which sets where pixels read them."""
    served, fine, noise = subjects.served, subjects.fine, subjects.noise
    return [
        (shape_name(served), served, SIZE),
        (shape_name(fine), fine, SIZE),
        (f"noise {shape_name(noise)}", noise, SIZE),
    ]


def shape_name(logits: Logits) -> str:
    """As 11x88x120."""
    return "x".join(map(str, logits.shape))


def measure(comparison: Comparison, seconds: float) -> tuple[Turns, Turns]:
    """Runs both in turn: ours, theirs."""
    mine, theirs = time_in_turn((comparison.ours, comparison.theirs), seconds)
    return mine, theirs


def summarize(comparison: Comparison, measured: Sequence[tuple[Turns, Turns]]) -> Row:
    """One stage over all photos, each of which was measured by itself."""
    mine, theirs = (pool(turns) for turns in zip(*measured, strict=True))

    def quartiles(turns: Turns) -> tuple[float, float]:
        return turns.cpu_ms(25), turns.cpu_ms(75)

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
    """Both ways against the float64 reference."""
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
        list[Path] | None, typer.Option(help=f"A photo of {SIZE}; several by several options.")
    ] = None,
    repository: Annotated[Path, typer.Option(help="Has icnet.")] = Path("model_repository"),
    seconds: Annotated[float, typer.Option(min=0, help="For each stage of each photo.")] = 3.0,
    results: Annotated[Path, typer.Option(help="Folder.")] = RESULTS,
) -> None:
    """Prints a row a stage, and writes them all."""
    machine = read_machine(PACKAGES)
    cv2.setNumThreads(1)
    lifecycle.warm_stages()
    kinds, stages, agreements = [], [], []
    for path in photo or [None]:
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
