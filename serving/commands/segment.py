"""``segserve segment``: photos to a server, its answers to files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from segserve_client import Client, Form, SegserveError

from serving.commands.connection import (
    ApiKey,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    choose_tls,
    describe,
)
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
    "rle": "_rle.json",
    "polygons": ".geojson",
}
SIZES: dict[str, OutputSize] = {"original": "original", "model": "model"}
# PNG is the server's own choice, and an option only where there is an overlay.
PICTURES: dict[str, Literal["jpeg"] | None] = {"png": None, "jpeg": "jpeg"}


@dataclass(frozen=True)
class Job:
    """One photo and the files that its answer goes to, one a format."""

    source: Path
    targets: tuple[Path, ...]


@dataclass(frozen=True)
class Options:
    """The options that go to the server with every photo."""

    formats: tuple[str, ...]
    size: OutputSize
    smooth: bool | None
    classes: tuple[str, ...]
    confidence: bool
    tta: tuple[str, ...]
    form: Form


def segment(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PHOTO_OR_FOLDER...",
            exists=True,
            show_default=False,
            help="photos, and folders that are searched for photos",
        ),
    ],
    model: Annotated[str, typer.Option(help="name of a model, or of a family, on the server")],
    format: Annotated[
        str, typer.Option(help=f"output formats, comma-separated: {', '.join(ENDINGS)}")
    ] = "overlay",
    out: Annotated[Path, typer.Option(help="folder for the answers")] = Path("out"),
    server: Annotated[str, typer.Option(help="HOST:GRPC_PORT of the server")] = "localhost:8001",
    size: Annotated[
        str, typer.Option(help="size of the label map: original (the photo's) or model")
    ] = "original",
    smooth: Annotated[
        bool | None,
        typer.Option("--smooth/--no-smooth", help="interpolate scores instead of class ids"),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(
            help="classes to keep, names or ids, comma-separated; others become the ignore label"
        ),
    ] = "",
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence", help="add the confidence to npy (then npz), stats, rle and polygons"
        ),
    ] = False,
    tta: Annotated[
        str, typer.Option(help="test-time augmentation, comma-separated: flip,0.75,1.25")
    ] = "",
    image: Annotated[str, typer.Option(help="file format of the overlay: png or jpeg")] = "png",
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality of the overlay")
    ] = None,
    opacity: Annotated[
        float | None, typer.Option(min=0, max=1, help="opacity of the overlay's colours")
    ] = None,
    legend: Annotated[
        bool, typer.Option("--legend", help="draw a legend below the overlay")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="simplify polygons by up to this many pixels")
    ] = None,
    min_area: Annotated[
        int | None, typer.Option(min=0, help="leave out polygons of fewer pixels")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="number of concurrent requests")] = 4,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="seconds that one photo may take")
    ] = 60.0,
    api_key: ApiKey = None,
    tls_ca: TlsAuthority = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
) -> None:
    """Segment photos, and all photos below folders, on a running server."""
    formats = tuple(dict.fromkeys(format.split(",")))
    choices = [("format", one, tuple(ENDINGS)) for one in formats]
    choices += [("size", size, tuple(SIZES)), ("image", image, tuple(PICTURES))]
    for name, value, known in choices:
        if value not in known:
            sys.exit(f"segserve segment: --{name} is {value!r}: expected {' or '.join(known)}")
    options = Options(
        formats,
        SIZES[size],
        smooth,
        tuple(filter(None, classes.split(","))),
        confidence,
        tuple(filter(None, tta.split(","))),
        Form(PICTURES[image], quality, opacity, legend, tolerance, min_area),
    )
    try:
        jobs = plan_jobs(sources, out, [find_ending(one, options) for one in formats])
        tls = choose_tls(tls_ca, tls_certificate, tls_key)
        with Client(server, model, timeout_s, api_key, tls) as client:
            client.describe()  # no server or no such model: said once, not for every photo
            failed = run_jobs(client, jobs, options, parallel)
    except (SegserveError, ValueError, OSError) as error:
        sys.exit(f"segserve segment: {describe(error)}")
    done = len(jobs) - failed
    print(f"{done} of {len(jobs)} written to {out}" if failed else f"{done} written to {out}")
    if failed:
        sys.exit(1)


def find_ending(format: str, options: Options) -> str:
    """Returns what follows the photo's stem in the name of that format's file."""
    if format == "overlay" and options.form.image == "jpeg":
        return "_overlay.jpg"
    if format == "npy" and options.confidence:
        return ".npz"
    return ENDINGS[format]


def plan_jobs(sources: list[Path], out: Path, endings: list[str]) -> tuple[Job, ...]:
    """Returns where each answer goes: below a folder, in the same subfolder of ``out``.

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
    jobs: list[Job] = []
    written: dict[Path, Path] = {}
    for source, relative in photos:
        stem = relative.stem if stems[relative.with_suffix("")] == 1 else relative.name
        targets = tuple(out / relative.parent / f"{stem}{ending}" for ending in endings)
        for target in targets:
            if target in written:
                raise ValueError(
                    f"{written[target]} and {source} would both be written to {target}; "
                    f"send them apart, with another --out"
                )
            written[target] = source
        jobs.append(Job(source, targets))
    originals = {source.resolve() for source, _ in photos}
    for target in written:
        if target.resolve() in originals:
            raise ValueError(f"{target} is one of the photos; name another folder with --out")
    return tuple(jobs)


def find_photos(source: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Yields photos, each with its path relative to the folder that was named; none from
    ``out``."""
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
    """Segments one photo and writes the answer's files.

    Raises:
        SegserveError: the server refused it.
        OSError: a file cannot be read or written.
    """
    files = client.encode_all(
        job.source,
        options.formats,
        size=options.size,
        smooth=options.smooth,
        classes=options.classes,
        confidence=options.confidence,
        tta=options.tta,
        form=options.form,
    )
    for format, target in zip(options.formats, job.targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[format].body)
