"""``benchmarks/peers.py``: measures, keeps every round, prints and draws what all came to."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from benchmarks.contest.cases import CASES, Case, build_files
from benchmarks.contest.contestants import CONTESTANTS, Contestant, Setting
from benchmarks.contest.measure import Load, Row, measure_turn
from benchmarks.contest.plot import plot_summaries
from benchmarks.contest.processes import Unavailable, end_on_sigterm
from benchmarks.contest.summary import HEADER, line, summarise, tables
from benchmarks.loadgen.images import read_folder, render_images
from benchmarks.machine import RESULTS, Machine, command_line, read_machine, save_plot, write_result

PACKAGES = ("onnxruntime", "mxnet", "fastapi", "uvicorn", "numpy", "pillow", "opencv-python")
RENDERED = 3


@dataclass
class Results:
    """What all calls of this benchmark measured on one case.

    Attributes:
        runs: the command and the machine of each call.
        left_out: why, by contestant.
        edges: share (0-1) of the first photo's pixels that have another class beside or below.
    """

    runs: list[dict[str, object]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    edges: float | None = None


def peers(
    network: Annotated[str, typer.Argument(help=", ".join(CASES))],
    loads: Annotated[
        str, typer.Option(help="Callers of closed loops, and open; empty: report alone.")
    ] = "1,2,4,8,open",
    rounds: Annotated[int, typer.Option(min=1, help="Every server once a round, in turn.")] = 1,
    only: Annotated[str, typer.Option(help="Contestants, by comma.")] = "",
    without: Annotated[str, typer.Option(help="Contestants, by comma.")] = "",
    photos: Annotated[Path | None, typer.Option(help="Folder; else scenes are rendered.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of a run; 0: all cores.")] = 0,
    seconds: Annotated[float, typer.Option(min=0, help="Of a closed loop; 0: the case's.")] = 0,
    rate: Annotated[float, typer.Option(min=0, help="Of the open loop; 0: the case's.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what is kept.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Build the files and end.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of JSON and plot.")] = RESULTS,
) -> None:
    """Prints a row a load; adds them to those kept, and writes tables and a plot of all."""
    if network not in CASES:
        raise typer.BadParameter(f"{network}: known are {', '.join(CASES)}")
    case = CASES[network]
    case = replace(case, closed_s=seconds or case.closed_s, open_rate=rate or case.open_rate)
    chosen = choose(only, without)
    sent = read_folder(photos) if photos else render_images(*_pair(case), RENDERED)
    cores = threads or len(os.sched_getaffinity(0))
    file = f"peers_{case.name}"
    kept = Results() if fresh else read_results(results / f"{file}.json")
    machine = read_machine(PACKAGES)
    wanted = [Load(None if n == "open" else int(n)) for n in loads.split(",") if n]
    if wanted:
        files = build_files(case, sent, cores)
        if build:
            return
        kept.runs.append({"command": command_line(), "machine": asdict(machine)})
        typer.echo(f"{case.title}, {cores} threads\n{HEADER}")
        first = 1 + max((row.round for row in kept.rows), default=-1)
        with tempfile.TemporaryDirectory(prefix="segserve-contest-") as folder:
            setting = Setting(files, cores, Path(folder))
            for number in range(first, first + rounds):
                measure_round(case, setting, sent, chosen, wanted, number, kept)
            kept.edges = count_edges(files.reference)
    summaries = summarise(kept.rows)
    content = {
        "subject": {
            "network": case.title,
            "photos": f"{len(sent)} of {photos.name}" if photos else f"{len(sent)} rendered scenes",
            "photo_bytes": [len(photo) for photo in sent],
            "threads": cores,
            "open_rate": case.open_rate,
            "edges": kept.edges,
        },
        "left_out": kept.left_out,
        "summaries": summaries,
        "runs": kept.runs,
        "rows": kept.rows,
    }
    if kept.runs and not wanted:
        machine = Machine(**kept.runs[-1]["machine"])  # type: ignore[arg-type]
    write_result(file, content, machine, results)
    if summaries:
        save_plot(file, plot_summaries(case.title, summaries), machine, results)
    typer.echo(f"\nall rounds:\n\n{tables(summaries)}")
    for name, why in kept.left_out.items():
        typer.echo(f"left out: {name}: {why}")


def measure_round(
    case: Case,
    setting: Setting,
    photos: list[bytes],
    contestants: list[Contestant],
    loads: list[Load],
    number: int,
    kept: Results,
) -> None:
    """Every contestant once; another one begins each round."""

    def tell(row: Row) -> None:
        kept.rows.append(row)
        typer.echo(line(summarise([row])[0]).replace("| ", f"| {row.load}: ", 1))

    start = number % len(contestants)
    for contestant in contestants[start:] + contestants[:start]:
        try:
            asyncio.run(measure_turn(contestant, setting, case, photos, loads, number, tell))
            kept.left_out.pop(contestant.name, None)
        except Unavailable as error:
            kept.left_out[contestant.name] = str(error)
            typer.echo(f"left out: {contestant.name}: {error}")


def choose(only: str, without: str) -> list[Contestant]:
    """The contestants of that names, or all but some."""
    names = [contestant.name for contestant in CONTESTANTS]
    for name in filter(None, (*only.split(","), *without.split(","))):
        if name not in names:
            raise typer.BadParameter(f"{name}: known are {', '.join(names)}")
    wanted = set(only.split(",") if only else names) - set(without.split(","))
    return [contestant for contestant in CONTESTANTS if contestant.name in wanted]


def read_results(path: Path) -> Results:
    """What is kept of earlier calls; nothing where there is no such file."""
    if not path.is_file():
        return Results()
    read = json.loads(path.read_text("utf-8"))
    rows = [
        Row(**row | {"latencies_ms": tuple(row["latencies_ms"]), "errors": tuple(row["errors"])})
        for row in read["rows"]
    ]
    return Results(read["runs"], read["left_out"], rows, read["subject"]["edges"])


def count_edges(picture: Path) -> float:
    """How much of a label map is at borders of classes: what restoring and PNG cost depends on."""
    with Image.open(picture) as opened:
        labels = np.asarray(opened)
    corner = labels[:-1, :-1]
    return round(float(((corner != labels[1:, :-1]) | (corner != labels[:-1, 1:])).mean()), 4)


def _pair(case: Case) -> tuple[int, int]:
    return case.photo.height, case.photo.width


def main() -> None:
    """Runs the command line."""
    end_on_sigterm()
    typer.run(peers)
