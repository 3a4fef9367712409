"""``segserve runs``: what was trained here, and how two runs differ."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from training.runs.epoch_log import EpochRecord
from training.runs.remaining_time import format_seconds
from training.runs.summary import (
    RunSummary,
    differing_options,
    find_runs,
    read_run_log,
    summarise_run,
)

COLUMNS = ("state", "epochs", "best mIoU", "last loss", "took", "started")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Folder = Annotated[Path, typer.Option(help="folder of runs (train.py --save-dir)")]


@app.callback(invoke_without_command=True)
def list_runs(context: typer.Context, folder: Folder = Path("runs")) -> None:
    """Lists the runs below a folder; `segserve runs compare A B` sets two side by side."""
    if context.invoked_subcommand is not None:
        return
    if not folder.is_dir():
        sys.exit(f"segserve runs: no folder {folder}; train.py writes its runs to --save-dir")
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
    one: Annotated[Path, typer.Argument(help="a run's folder, or its name below --folder")],
    other: Annotated[Path, typer.Argument(help="another one")],
    folder: Folder = Path("runs"),
    output: Annotated[Path | None, typer.Option(help="write the curves here, a PNG")] = None,
) -> None:
    """Shows the options that differ, the scores, and with --output the curves in one picture."""
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
        raise ValueError(f"{path} is no folder, and no run below {folder}; see `segserve runs`")
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
    """As wide as the terminal; a pipe has no width."""
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
