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
from benchmarks.loadgen.report import HEADER, RULE, Named, write_json
from benchmarks.loadgen.sweep import Sweep, sweep
from benchmarks.loadgen.target import Target
from training.flags import parse_floats, parse_size

RESULTS = Path(__file__).parents[1] / "results"


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
    deadline_ms: Annotated[
        float, typer.Option(min=0, help="Sent along; later answers are late. 0: none.")
    ] = 1000.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help=f"Where to write; unless given, in {RESULTS}.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of --percent.")] = None,
) -> None:
    """Prints a row a load, and the server's stages; writes both, with the machine, as JSON."""
    if not concurrency and not rate and not percent:
        raise typer.BadParameter("name a load: --concurrency, --rate or --percent")
    timing = Timing(seconds, skip, deadline_ms / 1000 if deadline_ms else None)
    sent = read_folder(images) if images else render_images(*parse_size(size))
    subject: dict[str, object] = {
        "transport": "grpc" if grpc else "http",
        "model": model,
        "form": form,
        "images": f"{len(sent)} of {images}" if images else f"{len(sent)} rendered scenes {size}",
        "image_bytes": sum(map(len, sent)) // len(sent),
    }

    def reach(deadline_s: float | None) -> Target:
        if grpc:
            return GrpcTarget(grpc, model, form=form, deadline_s=deadline_s)
        return HttpTarget(server, model, form=form, deadline_s=deadline_s)

    target, patient = reach(timing.deadline_s), reach(None)
    typer.echo(", ".join(f"{name} {value}" for name, value in subject.items()))
    typer.echo(f"{HEADER}\n{RULE}")
    told: list[Named] = []

    def tell(name: str, measurement: Measurement) -> None:
        told.append(Named(name, measurement))
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
    name = f"load_{subject['transport']}_{'sweep' if percent else 'runs'}.json"
    path = json_file or RESULTS / name
    write_json(path, subject, timing, told)
    typer.echo(f"written: {path}")
    if plot is not None and swept is not None:
        from benchmarks.loadgen.plot import plot_sweep

        plot_sweep(swept, timing.deadline_s, plot)


def _numbers(text: str) -> tuple[float, ...]:
    return parse_floats(text) if text else ()


def main() -> None:
    """Runs the command."""
    typer.run(load)
