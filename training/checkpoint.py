"""The folder of a run: what it was started with, how far it came, its weights.

``command.txt``, ``options.json``, ``network-symbol.json``, ``log.csv``, ``state.json``,
``last.params`` and ``best.params`` (MXNet's format, ``arg:``/``aux:`` and symbol names) and
``trainer.states`` (the optimizer's).
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunState:
    """Epochs finished, and the best validation mIoU with its epoch (-1: none yet)."""

    epochs_done: int = 0
    best_miou: float = 0.0
    best_epoch: int = -1


@dataclass(frozen=True)
class RunFolder:
    """Paths in the run's folder; files are replaced whole, so a killed run leaves the old ones."""

    path: Path

    @property
    def symbol(self) -> Path:
        return self.path / "network-symbol.json"

    @property
    def last(self) -> Path:
        return self.path / "last.params"

    @property
    def best(self) -> Path:
        return self.path / "best.params"

    @property
    def optimizer(self) -> Path:
        return self.path / "trainer.states"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    def start(self, options: dict[str, object], *, resumed: bool) -> None:
        """Creates the folder and notes the command and its options.

        The log and the state of an earlier run there go, unless it is ``resumed``.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not resumed:
            self.log.unlink(missing_ok=True)
            self.state.unlink(missing_ok=True)
        command = shlex.join(["python", *sys.argv])
        replace_text(self.path / "command.txt", command + "\n")
        text = json.dumps(options, indent=2, sort_keys=True, default=str)
        replace_text(self.path / "options.json", text + "\n")

    def read_state(self) -> RunState:
        """The state of the last finished epoch; a fresh one where there is none."""
        if not self.state.exists():
            return RunState()
        return RunState(**json.loads(self.state.read_text()))

    def write_state(self, state: RunState) -> None:
        replace_text(self.state, json.dumps(asdict(state)) + "\n")

    def append_log(self, row: dict[str, float]) -> None:
        """Adds a line to ``log.csv``; the first one makes the header."""
        fresh = not self.log.exists()
        with self.log.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)


def replace_text(path: Path, text: str) -> None:
    """Writes aside, then renames."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    os.replace(aside, path)
