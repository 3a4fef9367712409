"""``segserve runs``: which runs a folder holds, and how two of them differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from training.runs.checkpoint import PartOfEpoch, RunFolder, is_held
from training.runs.log import EpochRecord, read_records
from training.runs.progress import format_seconds
from training.runs.saved_options import Json, read_options


@dataclass(frozen=True)
class RunSummary:
    """A summary of one run.

    Attributes:
        state: ``running``, ``finished`` or ``stopped`` (killed or ended early; can be resumed).
        part: of the next epoch, where the run ended within it.
        best_miou: 0-1; None where nothing was scored.
        best_epoch: from 1.
        last_loss: mean of the last finished epoch; None before that.
        seconds: training and validation of the finished epochs.
        started: of the first process; None if unknown.
    """

    name: str
    dataset: str
    model: str
    state: str
    epochs_done: int
    part: PartOfEpoch
    epochs_planned: int
    best_miou: float | None
    best_epoch: int | None
    last_loss: float | None
    seconds: float
    started: datetime | None


def find_runs(folder: Path) -> Iterator[Path]:
    """Yields the run folders at or below ``folder``, by name."""
    for path in sorted(folder.rglob("options.json")):
        if "non-finite" not in path.parts:
            yield path.parent


def summarise_run(path: Path, name: str) -> RunSummary:
    """Summarises a run folder; ``name`` is its name in a list.

    Raises:
        ValueError: no run folder, or its log is broken.
    """
    folder = RunFolder(path)
    options = read_options(path)
    state = folder.read_state()
    records = [r for r in read_records(folder.log) if r.epoch <= state.epochs_done]
    planned = int(str(options.get("epochs", 0)))
    scored = state.best_epoch >= 0
    return RunSummary(
        name=name,
        dataset=str(options.get("dataset", "")),
        model=_model(options),
        state=_state(path, state.epochs_done, planned),
        epochs_done=state.epochs_done,
        part=state.part,
        epochs_planned=planned,
        best_miou=state.best_miou if scored else None,
        best_epoch=state.best_epoch + 1 if scored else None,
        last_loss=records[-1].loss if records else None,
        seconds=sum(record.seconds + record.validation_seconds for record in records),
        started=_started(folder),
    )


def read_run_log(path: Path) -> tuple[EpochRecord, ...]:
    """Returns the finished epochs of a run."""
    return read_records(RunFolder(path).log)


def differing_options(one: Path, other: Path) -> list[tuple[str, Json, Json]]:
    """Returns (name, one's value, other's) of each option that differs; None if a run lacks it.

    A symbol counts by what it says: a resumed run reads its own.
    """
    first, second = read_options(one), read_options(other)
    left_out = {"run", "resume"}
    if _read_symbol(one) == _read_symbol(other):
        left_out.add("symbol")
    names = sorted({*first, *second} - left_out)
    values = [(name, first.get(name), second.get(name)) for name in names]
    return [row for row in values if row[1] != row[2]]


def _read_symbol(path: Path) -> bytes | None:
    symbol = RunFolder(path).symbol
    return symbol.read_bytes() if symbol.exists() else None


def _model(options: Mapping[str, Json]) -> str:
    return f"{options.get('model', '')} {options.get('backbone', '')}".strip()


def _state(path: Path, done: int, planned: int) -> str:
    if is_held(path):
        return "running"
    return "finished" if done >= planned else "stopped"


def _started(folder: RunFolder) -> datetime | None:
    if not folder.environment.exists():
        return None
    starts = json.loads(folder.environment.read_text())
    return datetime.fromisoformat(starts[0]["started"]).astimezone(timezone.utc)


COLUMNS = ("state", "epochs", "best mIoU", "last loss", "took", "started")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Folder = Annotated[Path, typer.Option(help="folder of all runs (train.py --save-dir)")]


@app.callback(invoke_without_command=True)
def list_runs(context: typer.Context, folder: Folder = Path("runs")) -> None:
    """List the runs below a folder; `segserve runs compare A B` compares two of them."""
    if context.invoked_subcommand is not None:
        return
    if not folder.is_dir():
        sys.exit(
            f"segserve runs: {folder} is not a folder: expected --folder to name train.py's "
            "--save-dir"
        )
    console = _console()
    columns = (Column("run", overflow="fold"), "model", *COLUMNS)
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    problems: list[str] = []
    for path in find_runs(folder):
        name = str(path.relative_to(folder)) if path != folder else path.resolve().name
        try:
            table.add_row(*_row(summarise_run(path, name)))
        except ValueError as error:
            table.add_row(name, "", "unreadable")
            problems.append(str(error))
    if not table.row_count:
        sys.exit(f"segserve runs: no runs below {folder}")
    console.print(table)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)


@app.command("compare")
def compare_runs(
    one: Annotated[Path, typer.Argument(help="folder of a run, or its name below --folder")],
    other: Annotated[Path, typer.Argument(help="folder or name of another run")],
    folder: Folder = Path("runs"),
    output: Annotated[Path | None, typer.Option(help="PNG file for the curves")] = None,
) -> None:
    """Show the options that differ and the scores; with --output, draw the curves too."""
    try:
        paths = [_find(path, folder) for path in (one, other)]
        _print_comparison(paths, [str(one), str(other)])
        if output is not None:
            _draw_comparison(paths, [str(one), str(other)], output)
    except ValueError as error:
        sys.exit(f"segserve runs compare: {error}")


def _find(path: Path, folder: Path) -> Path:
    found = path if path.is_dir() else folder / path
    if not found.is_dir():
        raise ValueError(
            f"{path} is not a folder or a run below {folder}; `segserve runs` lists the runs"
        )
    return found


def _print_comparison(paths: list[Path], names: list[str]) -> None:
    runs = [summarise_run(path, name) for path, name in zip(paths, names, strict=True)]
    table = Table("", *names, box=None, padding=(0, 2, 0, 0))
    for option, first, second in differing_options(*paths):
        table.add_row(option, _text(first), _text(second))
    rows = zip(*(_row(run) for run in runs), strict=True)
    for title, values in zip(("run", "model", *COLUMNS), rows, strict=True):
        if title in COLUMNS:
            table.add_row(f"[bold]{title}[/bold]", *values)
    _console().print(table)


def _draw_comparison(paths: list[Path], names: list[str], output: Path) -> None:
    try:
        from training.runs.curves import draw_curves
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install 'segserve[training]'") from error
    logs: dict[str, tuple[EpochRecord, ...]] = {
        name: read_run_log(path) for path, name in zip(paths, names, strict=True)
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(logs, output)
    typer.echo(f"curves: {output}")


def _row(run: RunSummary) -> tuple[str, ...]:
    within = f" + {run.part.iterations}/{run.part.length}" if run.part.iterations else ""
    best = "-"
    if run.best_miou is not None:
        best = f"{run.best_miou * 100:.1f} % (epoch {run.best_epoch})"
    return (
        run.name,
        run.model,
        run.state,
        f"{run.epochs_done}/{run.epochs_planned}{within}",
        best,
        "-" if run.last_loss is None else f"{run.last_loss:.4f}",
        format_seconds(run.seconds),
        "-" if run.started is None else f"{_age(run.started)} ago",
    )


def _console() -> Console:
    """Returns a console as wide as the terminal; a pipe has no width."""
    return Console(width=None if sys.stdout.isatty() else 200)


def _age(started: datetime) -> str:
    minutes = int((datetime.now(timezone.utc) - started).total_seconds() // 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "-" if value is None else str(value)
