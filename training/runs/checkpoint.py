"""The folder of a run: what it was started with, how far it came, its weights.

``command.txt`` and ``environment.json`` (one entry a start), ``options.json``,
``network-symbol.json``, ``log.csv``, ``curves.png``, ``tensorboard/``, ``checkpoint-NNNN/``, and
links to its ``last.params`` and ``best.params`` (MXNet's format, ``arg:``/``aux:`` and symbol
names).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from training.runs.environment import RunEnvironment

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class RunState:
    """Epochs finished, and the best validation mIoU with its epoch (-1: none yet)."""

    epochs_done: int = 0
    best_miou: float = 0.0
    best_epoch: int = -1


@dataclass(frozen=True)
class Checkpoint:
    """``last.params``, ``best.params``, ``trainer.states`` (the optimizer's) and ``state.json``.

    They were written together and belong to the end of one epoch.
    """

    path: Path

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

    def read_state(self) -> RunState:
        return RunState(**json.loads(self.state.read_text()))


@dataclass(frozen=True)
class RunFolder:
    """Paths in the run's folder, and its checkpoints; the newest one is always whole."""

    path: Path

    @property
    def symbol(self) -> Path:
        return self.path / "network-symbol.json"

    @property
    def options(self) -> Path:
        return self.path / "options.json"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def last(self) -> Path:
        return self.path / "last.params"

    @property
    def best(self) -> Path:
        return self.path / "best.params"

    def make_room(self) -> Path | None:
        """For a fresh run: moves an earlier one that has weights aside, and returns where to.

        What is left of one that never finished an epoch is removed.
        """
        if self.newest() is not None or self.last.exists():
            moved = _free_name(self.path)
            self.path.rename(moved)
            return moved
        for path in (self.log, self.curves, self.environment, self.command):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        return None

    def start(self, options: Mapping[str, object], environment: RunEnvironment) -> None:
        """Creates the folder and notes the options; adds the command and the environment.

        The weights that go by fixed names are those of the newest checkpoint afterwards.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        commands = self.command.read_text() if self.command.exists() else ""
        starts = json.loads(self.environment.read_text()) if self.environment.exists() else []
        command = shlex.join(["python", *sys.argv])
        replace_text(self.command, f"{commands}{command}\n")
        replace_text(self.environment, format_json([*starts, asdict(environment)]))
        replace_text(self.options, format_json(options))
        newest = self.newest()
        if newest is not None:
            self._publish(newest)

    def newest(self) -> Checkpoint | None:
        """The checkpoint of the last finished epoch; None where no epoch was finished."""
        numbered = self._checkpoints()
        if numbered:
            return Checkpoint(numbered[max(numbered)])
        # Runs of version 0.1.0 have these files in the run's folder itself.
        early = Checkpoint(self.path)
        return early if early.state.exists() else None

    def read_state(self) -> RunState:
        """The state of the last finished epoch; a fresh one where there is none."""
        newest = self.newest()
        return RunState() if newest is None else newest.read_state()

    @contextmanager
    def checkpoint(self, state: RunState) -> Iterator[Checkpoint]:
        """Takes the ``last`` and ``optimizer`` that are written inside the ``with``.

        They are written aside and renamed as one folder: whenever the process is killed, the newest
        checkpoint is a whole one. ``best`` are the same weights where this epoch is the best (or
        none was scored), else those of the checkpoint before.
        """
        before = self.newest()
        aside = Checkpoint(self.path / "checkpoint.part")
        shutil.rmtree(aside.path, ignore_errors=True)
        aside.path.mkdir(parents=True)
        yield aside
        kept = before is not None and 0 <= state.best_epoch < state.epochs_done - 1
        _link(before.best if before is not None and kept else aside.last, aside.best)
        aside.state.write_text(format_json(asdict(state)))
        for path in (*aside.path.iterdir(), aside.path):
            _flush(path)
        done = Checkpoint(self.path / f"checkpoint-{state.epochs_done:04}")
        aside.path.rename(done.path)
        _flush(self.path)
        self._publish(done)
        for path in self._checkpoints().values():
            if path != done.path:
                shutil.rmtree(path)

    def _checkpoints(self) -> dict[int, Path]:
        if not self.path.is_dir():
            return {}
        matches = ((CHECKPOINT.fullmatch(path.name), path) for path in self.path.iterdir())
        return {int(match[1]): path for match, path in matches if match is not None}

    def _publish(self, checkpoint: Checkpoint) -> None:
        """``last.params`` and ``best.params`` under names that stay."""
        _link(checkpoint.last, self.last)
        _link(checkpoint.best, self.best)


def replace_text(path: Path, text: str) -> None:
    """Writes aside, then renames."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    os.replace(aside, path)


def format_json(content: object) -> str:
    """Indented, sorted, with a newline; paths as text."""
    return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _link(source: Path, target: Path) -> None:
    """One more name for a file, or a copy where the file system has no links."""
    aside = target.with_name(target.name + ".part")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    os.replace(aside, target)
    # Where both were the same file already, rename leaves both names.
    aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """To the disk: a rename must not get there before the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
