"""Loads a running server: ``python benchmarks/load.py --percent 50,100,200``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

import urllib.parse
from typing import Annotated

import typer
import uvloop

from benchmarks.loadgen.driver import read_folder, render_images
from benchmarks.loadgen.report import HEADER, RULE, Named, describe
from benchmarks.loadgen.summary import Load, Measurement, Sweep, Timing, measure_load, sweep
from benchmarks.loadgen.targets import GrpcTarget, HttpTarget, Target
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, save_plot, write_result
from training.flags import parse_floats, parse_size

PACKAGES = ("onnxruntime", "numpy", "opencv-python", "grpcio", "uvicorn", "uvloop", "aiohttp")


def load(
    server: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    grpc: Annotated[
        str | None, typer.Option(help="HOST:PORT: send the load over gRPC instead.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model or family.")] = "icnet",
    images: Annotated[
        Path | None, typer.Option(help="Folder of images, or one image; default: rendered scenes.")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of rendered scenes, HEIGHTxWIDTH.")] = "720x960",
    output_format: Annotated[str, typer.Option("--form", help="Output format.")] = "png",
    concurrency: Annotated[
        str, typer.Option(help="Closed loops: numbers of callers, comma-separated.")
    ] = "",
    rate: Annotated[
        str, typer.Option(help="Open loops (Poisson): requests/s, comma-separated.")
    ] = "",
    percent: Annotated[
        str,
        typer.Option(
            help="Open loops at these percentages of the capacity, which is measured first."
        ),
    ] = "",
    capacity_callers: Annotated[
        int, typer.Option(min=1, help="Callers that measure the capacity.")
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of --percent.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each load.")] = 12.0,
    skip: Annotated[
        float, typer.Option(min=0, help="Seconds at the start of a load that do not count.")
    ] = 2.0,
    rest: Annotated[float, typer.Option(min=0, help="Seconds between loads.")] = 0.5,
    deadline_ms: Annotated[
        float, typer.Option(min=0, help="Deadline of an answer; 0 sets none.")
    ] = 1000.0,
    send_deadline: Annotated[bool, typer.Option(help="Send the deadline to the server.")] = True,
    note: Annotated[
        str, typer.Option(help="Note for the result file, such as who runs on which cores.")
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the result files.")] = "load",
    results: ResultsFolder = RESULTS,
    plot: Annotated[bool, typer.Option(help="Also plot --percent.")] = False,
) -> None:
    """Prints a row for each load, and the server's stages; writes both as JSON."""
    if not concurrency and not rate and not percent:
        raise typer.BadParameter("no load is given: expected --concurrency, --rate or --percent")
    timing = Timing(seconds, skip, deadline_ms / 1000 if deadline_ms else None, rest)
    sent = read_folder(images) if images else render_images(*parse_size(size))
    subject: dict[str, object] = {
        "transport": "grpc" if grpc else "http",
        "model": model,
        "note": note or "none",
        "form": output_format,
        "deadline": "sent" if send_deadline and deadline_ms else "not sent",
        "images": f"{len(sent)} of {images}" if images else f"{len(sent)} rendered scenes {size}",
        "image_bytes": sum(map(len, sent)) // len(sent),
    }

    def reach(deadline_s: float | None) -> Target:
        if grpc:
            return GrpcTarget(grpc, model, output_format=output_format, deadline_s=deadline_s)
        return HttpTarget(server, model, output_format=output_format, deadline_s=deadline_s)

    target, patient = reach(timing.deadline_s if send_deadline else None), reach(None)
    machine = read_machine(PACKAGES)
    typer.echo(", ".join(f"{key} {value}" for key, value in subject.items()))
    typer.echo(f"{HEADER}\n{RULE}")
    reported: list[Named] = []

    def report(which: str, measurement: Measurement) -> None:
        reported.append(Named(which, measurement))
        typer.echo(reported[-1].line())

    async def run() -> Sweep | None:
        url = urllib.parse.urljoin(server, "/metrics")
        try:
            loads = [Load(callers=int(count)) for count in _numbers(concurrency)]
            loads += [Load(per_second=each) for each in _numbers(rate)]
            for each in loads:
                measured = await measure_load(target, sent, each, timing, url)
                report(measured.summary.load, measured)
            if not percent:
                return None
            return await sweep(
                target, sent, parse_floats(percent), timing,
                callers=capacity_callers, patient=patient, rounds=rounds,
                metrics_url=url, report=report,
            )  # fmt: skip
        finally:
            await target.close()
            await patient.close()

    swept = uvloop.run(run())
    typer.echo("stages of an image, ms: mean (median, 95th percentile by the histogram's buckets)")
    for named in reported:
        typer.echo(named.stage_line())
    typer.echo(write_result(name, describe(subject, timing, reported), machine, results))
    if plot and swept is not None:
        from benchmarks.loadgen.report import plot_sweep

        typer.echo(save_plot(name, plot_sweep(swept, timing.deadline_s), machine, results))


def _numbers(text: str) -> tuple[float, ...]:
    return parse_floats(text) if text else ()


if __name__ == "__main__":
    typer.run(load)
