"""``benchmarks/load.py``: loads a running server from this process, and tells what came of it."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from benchmarks.loadgen.grpc_target import GrpcTarget
from benchmarks.loadgen.http_target import HttpTarget
from benchmarks.loadgen.images import read_folder, render_images
from benchmarks.loadgen.measurement import Load, Measurement, Timing, measure_load
from benchmarks.loadgen.report import HEADER, RULE, Named, describe
from benchmarks.loadgen.sweep import Sweep, sweep
from benchmarks.loadgen.target import Target
from benchmarks.machine import RESULTS, read_machine, save_plot, write_result
from training.flags import parse_floats, parse_size

PACKAGES = ("onnxruntime", "numpy", "opencv-python", "grpcio", "uvicorn", "uvloop", "aiohttp")


def load(
    server: Annotated[str, typer.Option(help="Its HTTP port.")] = "http://127.0.0.1:8000",
    grpc: Annotated[
        str | None, typer.Option(help="HOST:PORT; the load goes over gRPC instead.")
    ] = None,
    model: Annotated[str, typer.Option(help="Or a family.")] = "icnet",
    images: Annotated[Path | None, typer.Option(help="A folder of images, or one.")] = None,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of scenes, without images.")] = "720x960",
    form: Annotated[str, typer.Option(help="Of the answers.")] = "png",
    concurrency: Annotated[
        str, typer.Option(help="Closed loops: callers, several with commas.")
    ] = "",
    rate: Annotated[
        str, typer.Option(help="Open loops (Poisson): requests/s, several with commas.")
    ] = "",
    percent: Annotated[
        str, typer.Option(help="Open loops at these shares of the capacity, measured first.")
    ] = "",
    capacity_callers: Annotated[int, typer.Option(min=1, help="That measure it.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Of --percent.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 12.0,
    skip: Annotated[float, typer.Option(min=0, help="Seconds not counted at its start.")] = 2.0,
    rest: Annotated[float, typer.Option(min=0, help="Seconds between loads.")] = 0.5,
    deadline_ms: Annotated[
        float, typer.Option(min=0, help="Later answers are late. 0: none.")
    ] = 1000.0,
    send_deadline: Annotated[bool, typer.Option(help="Tell the server.")] = True,
    note: Annotated[str, typer.Option(help="Is written down: who runs on which cores.")] = "",
    name: Annotated[str, typer.Option(help="Of the files of results.")] = "load",
    results: Annotated[Path, typer.Option(help="Where they are written.")] = RESULTS,
    plot: Annotated[bool, typer.Option(help="Also a picture of --percent.")] = False,
) -> None:
    """Prints a row a load, and the server's stages; writes both, with the machine, as JSON."""
    if not concurrency and not rate and not percent:
        raise typer.BadParameter("name a load: --concurrency, --rate or --percent")
    timing = Timing(seconds, skip, deadline_ms / 1000 if deadline_ms else None, rest)
    sent = read_folder(images) if images else render_images(*parse_size(size))
    subject: dict[str, object] = {
        "transport": "grpc" if grpc else "http",
        "model": model,
        "note": note or "none",
        "form": form,
        "deadline": "sent" if send_deadline and deadline_ms else "not sent",
        "images": f"{len(sent)} of {images}" if images else f"{len(sent)} rendered scenes {size}",
        "image_bytes": sum(map(len, sent)) // len(sent),
    }

    def reach(deadline_s: float | None) -> Target:
        if grpc:
            return GrpcTarget(grpc, model, form=form, deadline_s=deadline_s)
        return HttpTarget(server, model, form=form, deadline_s=deadline_s)

    target, patient = reach(timing.deadline_s if send_deadline else None), reach(None)
    machine = read_machine(PACKAGES)
    typer.echo(", ".join(f"{key} {value}" for key, value in subject.items()))
    typer.echo(f"{HEADER}\n{RULE}")
    told: list[Named] = []

    def tell(which: str, measurement: Measurement) -> None:
        told.append(Named(which, measurement))
        typer.echo(told[-1].line())

    async def run() -> Sweep | None:
        url = urllib.parse.urljoin(server, "/metrics")
        try:
            loads = [Load(callers=int(count)) for count in _numbers(concurrency)]
            loads += [Load(per_second=each) for each in _numbers(rate)]
            for each in loads:
                measured = await measure_load(target, sent, each, timing, url)
                tell(measured.summary.load, measured)
            if not percent:
                return None
            return await sweep(
                target, sent, parse_floats(percent), timing,
                callers=capacity_callers, patient=patient, rounds=rounds,
                metrics_url=url, tell=tell,
            )  # fmt: skip
        finally:
            await target.close()
            await patient.close()

    swept = uvloop.run(run())
    typer.echo("stages of an image, ms: mean (median, 95th percentile by the histogram's buckets)")
    for named in told:
        typer.echo(named.stage_line())
    typer.echo(write_result(name, describe(subject, timing, told), machine, results))
    if plot and swept is not None:
        from benchmarks.loadgen.plot import plot_sweep

        typer.echo(save_plot(name, plot_sweep(swept, timing.deadline_s), machine, results))


def _numbers(text: str) -> tuple[float, ...]:
    return parse_floats(text) if text else ()


def main() -> None:
    """Runs the command."""
    typer.run(load)
