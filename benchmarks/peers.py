"""Compares this server with others: ``python benchmarks/peers.py icnet --loads 1,2,4,8,open``.

Every round is kept; tables and the plot are of all rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

import asyncio
import os
import tempfile
from dataclasses import asdict, replace
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from benchmarks.contest.cases import CASES, Case, build_files
from benchmarks.contest.contestants import CONTESTANTS, Contestant, Setting
from benchmarks.contest.measure import Load, Row, measure_turn
from benchmarks.contest.plot import plot_summaries
from benchmarks.contest.processes import Unavailable, end_on_sigterm
from benchmarks.contest.summary import HEADER, Results, line, read_results, summarise, tables
from benchmarks.loadgen.driver import read_folder, render_images
from benchmarks.machine import (
    RESULTS,
    Machine,
    ResultsFolder,
    command_line,
    read_machine,
    save_plot,
    write_result,
)

PACKAGES = ("onnxruntime", "mxnet", "fastapi", "uvicorn", "numpy", "pillow", "opencv-python")
RENDERED = 3


def peers(
    network: Annotated[str, typer.Argument(help=f"Case: {', '.join(CASES)}.")],
    loads: Annotated[
        str, typer.Option(help="Numbers of callers (closed loops), and open; empty: only report.")
    ] = "1,2,4,8,open",
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; each measures every server once.")
    ] = 1,
    only: Annotated[str, typer.Option(help="Contestants, comma-separated.")] = "",
    without: Annotated[str, typer.Option(help="Contestants, comma-separated.")] = "",
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photos; default: rendered scenes.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of a run; 0 uses all cores.")
    ] = 0,
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of a closed loop; 0 uses the case's.")
    ] = 0,
    rate: Annotated[
        float, typer.Option(min=0, help="Requests/s of the open loop; 0 uses the case's.")
    ] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the stored rounds.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Only build the files.")] = False,
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints a row for each load, stores it, and writes a table and a plot of all rounds."""
    if network not in CASES:
        raise typer.BadParameter(f"{network!r} is not a case: expected {', '.join(CASES)}")
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
        machine = Machine(**kept.runs[-1]["machine"])
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
    """Measures every contestant once; another one begins each round."""

    def report(row: Row) -> None:
        kept.rows.append(row)
        typer.echo(line(summarise([row])[0]).replace("| ", f"| {row.load}: ", 1))

    start = number % len(contestants)
    for contestant in contestants[start:] + contestants[:start]:
        try:
            asyncio.run(measure_turn(contestant, setting, case, photos, loads, number, report))
            kept.left_out.pop(contestant.name, None)
        except Unavailable as error:
            kept.left_out[contestant.name] = str(error)
            typer.echo(f"left out: {contestant.name}: {error}")


def choose(only: str, without: str) -> list[Contestant]:
    """Returns the contestants with these names, or all but some."""
    names = [contestant.name for contestant in CONTESTANTS]
    for name in filter(None, (*only.split(","), *without.split(","))):
        if name not in names:
            raise typer.BadParameter(f"{name!r} is not a contestant: expected {', '.join(names)}")
    wanted = set(only.split(",") if only else names) - set(without.split(","))
    return [contestant for contestant in CONTESTANTS if contestant.name in wanted]


def count_edges(picture: Path) -> float:
    """Returns the share of pixels at borders of classes, on which the cost of PNG depends."""
    with Image.open(picture) as opened:
        labels = np.asarray(opened)
    corner = labels[:-1, :-1]
    return round(float(((corner != labels[1:, :-1]) | (corner != labels[:-1, 1:])).mean()), 4)


def _pair(case: Case) -> tuple[int, int]:
    return case.photo.height, case.photo.width


if __name__ == "__main__":
    end_on_sigterm()
    typer.run(peers)
