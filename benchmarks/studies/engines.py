"""The engines of one machine side by side: ``python -m benchmarks.studies.engines FILE.onnx ...``

Every file of the contract that is named is run by ONNX Runtime and by OpenVINO, one image at a
time, in turn; ratios are to ONNX Runtime with the same file, turn by turn, so they hold on a busy
machine too. Labels are those of one picture, at the network's own resolution, against ONNX
Runtime's of the first file of the same size and classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.machine import RESULTS, read_machine, write_result
from benchmarks.timing import Spread, ratios, spread_of, time_in_turn
from serving.engine import Engine, EngineSpec
from serving.engines.cpu_choice import agreement, has_openvino, read_picture
from serving.engines.onnxruntime import OnnxEngine
from serving.engines.openvino import OpenVinoEngine
from serving.errors import InvalidModel
from serving.imaging.restore import Prediction

# Threads of one engine that still spin would take time from the other's turn.
PAUSE_S = 0.1
HEAD = (
    "| file | engine | wall, ms | of ONNX Runtime | CPU time, of ONNX Runtime | equal labels |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """One engine with one file; the ratios are to ONNX Runtime's, turn by turn."""

    file: str
    precision: str
    engine: str
    wall_ms: Spread
    wall_ratio: Spread
    cpu_ratio: Spread
    labels: float

    def line(self) -> str:
        """Returns a row of the table."""
        return (
            f"| {self.file} | {self.engine} | {self.wall_ms} | {self.wall_ratio} "
            f"| {self.cpu_ratio} | {100 * self.labels:.2f} % |"
        )


def open_engines(path: Path, threads: int) -> dict[str, Engine]:
    """Returns what this machine can run the file with, ONNX Runtime first."""
    found: dict[str, Engine] = {
        "ONNX Runtime": OnnxEngine(path, instances=1, threads=threads, max_batch_size=1)
    }
    for precision in ("fp32", "bf16") if has_openvino() else ():
        try:
            engine = OpenVinoEngine(
                path, instances=1, threads=threads, max_batch_size=1, precision=precision
            )
        except InvalidModel as error:
            typer.echo(f"{path}: {error}", err=True)
            continue
        found[f"OpenVINO, floats in {precision}"] = engine
    return found


def main(
    files: Annotated[list[Path], typer.Argument(help="ONNX files of the contract.")],
    turns: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 15,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores.")] = 0,
    results: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Prints a row an engine and file, as a table for docs/engines.md."""
    machine = read_machine(("numpy", "onnxruntime", "openvino"))
    cores = threads or len(os.sched_getaffinity(0))
    references: dict[EngineSpec, Prediction] = {}
    rows: list[Row] = []
    typer.echo(HEAD)
    for path in files:
        engines = open_engines(path, cores)
        first = engines["ONNX Runtime"]
        picture = read_picture(first.spec.size)
        reference = references.setdefault(_without_precision(first.spec), first.run(picture))
        runs = [partial(engine.run, picture) for engine in engines.values()]
        timed = time_in_turn(runs, 0.0, turns, PAUSE_S)
        for (name, engine), own in zip(engines.items(), timed, strict=True):
            row = Row(
                f"{path.parents[1].name} ({first.spec.precision})",
                engine.spec.precision,
                name,
                spread_of([1000 * wall for wall in own.walls]),
                ratios(own.walls, timed[0].walls),
                ratios(own.cpus, timed[0].cpus),
                agreement(engine.run(picture), reference),
            )
            typer.echo(row.line())
            rows.append(row)
            engine.close()
    typer.echo(f"\n{machine.line()}")
    write_result("engines", {"threads": cores, "turns": turns, "rows": rows}, machine, results)


def _without_precision(spec: EngineSpec) -> EngineSpec:
    return EngineSpec(spec.size, spec.num_classes, spec.logits_size, 1, 1, "")


if __name__ == "__main__":
    typer.run(main)
