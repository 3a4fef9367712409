"""Prints the time of an image: ``python benchmarks/fps.py --model icnet``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

import json
import os
import time
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.engines.graphs import built_graph
from benchmarks.engines.speed import ENGINES, check_choice, measure_speed, open_subject
from benchmarks.engines.subject import Case, EngineMissing
from export.errors import ExportError
from export.symbols.find import NetworkName
from serving.engines.acceleration import Acceleration
from serving.engines.graph import cut_graph, outputs_of, read_graph, read_spec
from serving.errors import SegserveError
from serving.imaging.geometry import Size
from serving.models.repository import read_model
from serving.palette import load_labels

PRECISIONS = ("fp32", "fp16", "int8")


def served_case(repository: Path, model: str, batch: int, threads: int) -> Case:
    """Returns the newest version of a repository's model as a case."""
    folder = read_model(repository / model)
    path = folder.graph(folder.versions[-1])
    whole = read_graph(path)
    spec = read_spec(path, cut_graph(whole, outputs_of(whole)[0]), 1, batch)
    height, width = spec.size.height, spec.size.width
    classes = len(folder.labels.names)
    return Case(model, None, classes, height, width, spec.precision, batch, path, threads=threads)


def fps(
    model: Annotated[str, typer.Option(help="Network, or the model's name with --served.")],
    backbone: Annotated[str, typer.Option(help="Backbone of the network.")] = "resnet50",
    width: Annotated[float, typer.Option(help="Channel multiplier.")] = 1.0,
    dataset: Annotated[
        str, typer.Option(help="Dataset that sets the number of classes.")
    ] = "citys",
    size: Annotated[str, typer.Option(help="Image size, HEIGHTxWIDTH.")] = "1024x2048",
    engine: Annotated[
        str, typer.Option(help=f"{', '.join(ENGINES)}; auto: CUDA if available, else the CPU.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help=f"{', '.join(PRECISIONS)}.")] = "fp32",
    output: Annotated[
        str | None, typer.Option(help="logits or mask; default: logits if the graph has them.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a run.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to measure.")] = 10.0,
    warmup: Annotated[int, typer.Option(min=1, help="Runs before the measurement.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 uses all cores.")] = 0,
    graphs: Annotated[bool, typer.Option(help="Replay captured CUDA graphs.")] = True,
    nhwc: Annotated[bool, typer.Option(help="Channels last, on the CUDA provider.")] = False,
    served: Annotated[
        bool, typer.Option("--served", help="Measure a model of the repository.")
    ] = False,
    repository: Annotated[Path, typer.Option(help="Model repository of --served.")] = Path(
        "model_repository"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Prints the time that an image takes in an engine, without a server."""
    console = Console(stderr=True, highlight=False)
    begin = time.perf_counter()
    try:
        check_choice("--engine", engine, ENGINES)
        check_choice("--precision", precision, PRECISIONS)
        cores = threads or len(os.sched_getaffinity(0))
        with console.status("building the graph" if not served else "reading the repository"):
            if served:
                case = served_case(repository, model, batch, cores)
                weights = f"of {repository}"
            else:
                pixels = Size.parse(size)
                network = NetworkName(model, backbone, width, dataset)
                classes = len(load_labels(dataset).names)
                case = Case(
                    network.stem, network, classes, pixels.height, pixels.width, precision, batch,
                    threads=cores,
                )  # fmt: skip
                weights = "random weights (speed does not depend on them)"
                if engine not in ("torch", "mxnet"):
                    graph = built_graph(network, case.classes, case.height, case.width, precision)
                    case = replace(case, graph=graph)
            case = replace(case, output=output, graphs=graphs)
        with console.status("loading"):
            options = Acceleration(cuda={"prefer_nhwc": "1"} if nhwc else {})
            subject = open_subject(case, engine, options)
        with console.status(f"measuring for {seconds:g} s"):
            speed = measure_speed(subject, case, seconds, warmup, weights)
        subject.close()
    except (EngineMissing, ExportError, SegserveError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    for line in speed.lines():
        typer.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(speed), indent=2) + "\n")
    console.print(f"{time.perf_counter() - begin:.0f} s in all", style="dim")


if __name__ == "__main__":
    typer.run(fps)
