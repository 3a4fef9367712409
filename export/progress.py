"""The progress of a command on the terminal: its steps, the parts of a long one, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

OnPart = Callable[[], None]
# Bytes so far, and bytes in all (0: not known).
OnBytes = Callable[[int, int], None]


class Steps:
    """The bar of a command's steps: calling it names the one that begins and ends the one
    before."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=total, completed=-1)
        self._part = progress.add_task("", visible=False)

    def __call__(self, description: str) -> None:
        self._progress.update(self._part, visible=False)
        self._progress.update(self._task, description=description, advance=1)

    def part(self, description: str, total: int) -> OnPart:
        """Shows a bar for a long part of the step; what it returns is called ``total`` times."""
        self._progress.reset(self._part, description=f"  {description}", total=total, visible=True)
        return lambda: self._progress.advance(self._part)

    def show(self, table: Table) -> None:
        """Prints a table; it stays when the bars are gone."""
        self._progress.console.print(table)


@contextmanager
def show_steps(console: Console, total: int) -> Iterator[Steps]:
    """Shows bars for ``total`` steps; they vanish at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Steps(progress, total)


@contextmanager
def show_bytes(console: Console, description: str) -> Iterator[OnBytes]:
    """Shows a bar for a download, and the time of what follows; it vanishes at the end."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
