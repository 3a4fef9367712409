"""``segserve segment``: photos to a server, its answers to files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from segserve_client import Client, SegserveError

from serving.requests import OutputSize

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# What follows the photo's stem, by format.
ENDINGS = {
    "png": ".png",
    "overlay": "_overlay.png",
    "confidence": "_confidence.png",
    "npy": ".npy",
    "raw": ".raw",
    "stats": ".json",
}
SIZES: dict[str, OutputSize] = {"original": "original", "model": "model"}


@dataclass(frozen=True)
class Job:
    """One photo and the file that its answer goes to."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Options:
    """What is asked of the server for every photo."""

    format: str
    size: OutputSize
    smooth: bool | None
    classes: tuple[str, ...]


def segment(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PHOTO_OR_FOLDER", exists=True, show_default=False)
    ],
    model: Annotated[str, typer.Option(help="a model that the server has")],
    format: Annotated[str, typer.Option(help=", ".join(ENDINGS))] = "overlay",
    out: Annotated[Path, typer.Option(help="folder for the answers")] = Path("out"),
    server: Annotated[str, typer.Option(help="host and gRPC port")] = "localhost:8001",
    size: Annotated[str, typer.Option(help="of the answer: original, model")] = "original",
    smooth: Annotated[
        bool | None, typer.Option("--smooth/--no-smooth", help="interpolate logits, not ids")
    ] = None,
    classes: Annotated[str, typer.Option(help="keep these: names or ids, by comma")] = "",
    parallel: Annotated[int, typer.Option(min=1, help="photos on their way at once")] = 4,
    timeout_s: Annotated[float, typer.Option("--timeout", help="seconds a photo")] = 60.0,
) -> None:
    """Segment photos, and all photos below folders, on a running server."""
    for name, value, known in (("format", format, ENDINGS), ("size", size, SIZES)):
        if value not in known:
            sys.exit(f"segserve segment: --{name} is {value!r}; known: {', '.join(known)}")
    options = Options(format, SIZES[size], smooth, tuple(filter(None, classes.split(","))))
    try:
        jobs = plan_jobs(sources, out, ENDINGS[format])
        with Client(server, model, timeout_s) as client:
            client.describe()  # no server or no such model: said once, not for every photo
            failed = run_jobs(client, jobs, options, parallel)
    except (SegserveError, ValueError) as error:
        sys.exit(f"segserve segment: {error}")
    done = len(jobs) - failed
    print(f"{done} of {len(jobs)} written to {out}" if failed else f"{done} written to {out}")
    if failed:
        sys.exit(1)


def plan_jobs(sources: list[Path], out: Path, ending: str) -> tuple[Job, ...]:
    """Where each answer goes: below a folder, in the same subfolder of ``out``.

    Photos that differ only in their suffix keep it: ``a.jpg`` and ``a.png`` become ``a.jpg.png``
    and ``a.png.png``.

    Raises:
        ValueError: no photos; two answers for one file; or an answer in place of a photo.
    """
    photos = dict.fromkeys(found for source in sources for found in find_photos(source, out))
    if not photos:
        raise ValueError(
            f"no photos ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, sources))}"
        )
    stems = Counter(relative.with_suffix("") for _, relative in photos)
    jobs: dict[Path, Job] = {}
    for source, relative in photos:
        stem = relative.stem if stems[relative.with_suffix("")] == 1 else relative.name
        target = out / relative.parent / f"{stem}{ending}"
        if target in jobs:
            raise ValueError(
                f"{jobs[target].source} and {source} would both be written to {target}; "
                f"send them apart, with another --out"
            )
        jobs[target] = Job(source, target)
    originals = {source.resolve() for source, _ in photos}
    for target in jobs:
        if target.resolve() in originals:
            raise ValueError(f"{target} is one of the photos; name another folder with --out")
    return tuple(jobs.values())


def find_photos(source: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Photos, each with its path relative to the folder that was named; none out of ``out``."""
    if not source.is_dir():
        yield source, Path(source.name)
        return
    answers = out.resolve()
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            # With --out below the folder, a second run would segment the first one's answers.
            if answers != source.resolve() and answers in path.resolve().parents:
                continue
            yield path, path.relative_to(source)


def run_jobs(client: Client, jobs: tuple[Job, ...], options: Options, parallel: int) -> int:
    """Does all jobs, and returns how many failed; each of those gets a line on stderr."""
    console = Console(stderr=True)
    failed = 0
    with (
        Progress(console=console, disable=len(jobs) == 1) as progress,
        ThreadPoolExecutor(parallel) as pool,
    ):
        task = progress.add_task("segmenting", total=len(jobs))
        futures: dict[Future[None], Job] = {
            pool.submit(run_job, client, job, options): job for job in jobs
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, (SegserveError, OSError)):
                    failed += 1
                    text = f"{futures[future].source}: {error}"
                    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
                elif error is not None:
                    raise error
                progress.advance(task)
        finally:
            # On Ctrl-C, photos that have not started stay where they are.
            pool.shutdown(cancel_futures=True)
    return failed


def run_job(client: Client, job: Job, options: Options) -> None:
    """Segments one photo and writes the answer.

    Raises:
        SegserveError: the server refused it.
        OSError: a file cannot be read or written.
    """
    body = client.encode(
        job.source,
        options.format,
        size=options.size,
        smooth=options.smooth,
        classes=options.classes,
    )
    job.target.parent.mkdir(parents=True, exist_ok=True)
    job.target.write_bytes(body)
