"""The folder of a run: what it was started with, how far it came, its weights.

``command.txt`` and ``environment.json`` (one entry a start), ``options.json``,
``network-symbol.json``, ``log.csv``, ``curves.png``, ``tensorboard/``, ``checkpoint-NNNN/`` (within
an epoch ``checkpoint-NNNN-IIIIII/``), and links to its ``last.params`` and ``best.params`` (MXNet's
format, ``arg:``/``aux:`` and symbol names).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from training.runs.environment import RunEnvironment

if TYPE_CHECKING:
    # Their options name the folder of a run.
    from training.trainers import Learner

ASIDE = "checkpoint.part"
# Epochs done; within an epoch also the iterations of it that are.
CHECKPOINT = re.compile(r"checkpoint-(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class PartOfEpoch:
    """A place within an epoch, and what its line in the log has so far.

    Attributes:
        iterations: done, of ``length``.
        steps: taken; those that were not finite are missing.
        loss: the sum over these steps.
        seconds: of all iterations.
    """

    iterations: int = 0
    length: int = 0
    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        """Returns the mean loss of the steps; NaN if no step was taken."""
        return self.loss / self.steps if self.steps else math.nan

    def extended(self, loss: float | None, seconds: float) -> PartOfEpoch:
        """Returns the part with one more iteration; ``loss`` None: its step was not taken."""
        return replace(
            self,
            iterations=self.iterations + 1,
            steps=self.steps + (loss is not None),
            loss=self.loss + (loss or 0.0),
            seconds=self.seconds + seconds,
        )


@dataclass(frozen=True)
class RunState:
    """The number of finished epochs, and the best validation mIoU with its epoch (-1: none yet)."""

    epochs_done: int = 0
    best_miou: float = 0.0
    best_epoch: int = -1
    part: PartOfEpoch = PartOfEpoch()

    @property
    def place(self) -> tuple[int, int]:
        """Returns the number of epochs done, and of iterations of the next one."""
        return self.epochs_done, self.part.iterations


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; names the run, the reason and what to do."""


class _Inside:
    """The path of a file in a dataclass's folder ``path``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Checkpoint | RunFolder, kind: type) -> Path:
        return owner.path / self.name


@dataclass(frozen=True)
class Checkpoint:
    """A folder of ``last.params``, ``best.params``, ``trainer.states`` (the optimizer's) and
    ``state.json``.

    They were written together and belong to one place in the run.
    """

    path: Path
    last = _Inside("last.params")
    best = _Inside("best.params")
    optimizer = _Inside("trainer.states")
    state = _Inside("state.json")

    def read_state(self) -> RunState:
        saved = json.loads(self.state.read_text())
        return RunState(**{**saved, "part": PartOfEpoch(**saved.get("part", {}))})


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: its paths and its checkpoints, of which the newest one is always whole."""

    path: Path
    symbol = _Inside("network-symbol.json")
    options = _Inside("options.json")
    command = _Inside("command.txt")
    environment = _Inside("environment.json")
    log = _Inside("log.csv")
    curves = _Inside("curves.png")
    tensorboard = _Inside("tensorboard")
    last = _Inside("last.params")
    best = _Inside("best.params")

    def make_room(self) -> Path | None:
        """Makes room for a new run: renames an earlier one that has weights, and returns its new
        name.

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
        """Creates the folder and writes the options; adds the command and the environment.

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
        """Returns the last checkpoint; None if there is none."""
        numbered = self._checkpoints()
        if numbered:
            return Checkpoint(numbered[max(numbered)])
        # Runs of version 0.1.0 have these files in the run's folder itself.
        early = Checkpoint(self.path)
        return early if early.state.exists() else None

    def read_state(self) -> RunState:
        """Returns the state of the last checkpoint; a new one if there is none."""
        newest = self.newest()
        return RunState() if newest is None else newest.read_state()

    @contextmanager
    def checkpoint(self, state: RunState) -> Iterator[Checkpoint]:
        """Writes a checkpoint: the body of the ``with`` writes its ``last`` and ``optimizer``.

        They are written aside and renamed as one folder: whenever the process is killed, the newest
        checkpoint is a whole one. ``best`` are the same weights where this epoch is the best (or
        none was scored), else those of the checkpoint before.

        Raises:
            CheckpointNotWritten: nothing is left of it, and the one before stays.
        """
        try:
            with self._checkpoint(state) as aside:
                yield aside
        except OSError as error:
            shutil.rmtree(self.path / ASIDE, ignore_errors=True)
            raise CheckpointNotWritten(
                f"cannot write a checkpoint to {self.path}: {error.strerror or error}; make "
                f"room for it, then continue with --resume {self.path}"
            ) from error

    @contextmanager
    def _checkpoint(self, state: RunState) -> Iterator[Checkpoint]:
        before = self.newest()
        aside = Checkpoint(self.path / ASIDE)
        shutil.rmtree(aside.path, ignore_errors=True)
        aside.path.mkdir(parents=True)
        yield aside
        latest = -1 if state.part.iterations else state.epochs_done - 1
        kept = before is not None and state.best_epoch >= 0 and state.best_epoch != latest
        _link(before.best if before is not None and kept else aside.last, aside.best)
        aside.state.write_text(format_json(asdict(state)))
        for path in (*aside.path.iterdir(), aside.path):
            _flush(path)
        epochs, iterations = state.place
        within = f"-{iterations:06}" if iterations else ""
        done = Checkpoint(self.path / f"checkpoint-{epochs:04}{within}")
        aside.path.rename(done.path)
        _flush(self.path)
        self._publish(done)
        for path in self._checkpoints().values():
            if path != done.path:
                shutil.rmtree(path)

    def _checkpoints(self) -> dict[tuple[int, int], Path]:
        if not self.path.is_dir():
            return {}
        matches = ((CHECKPOINT.fullmatch(path.name), path) for path in self.path.iterdir())
        return {(int(m[1]), int(m[2] or 0)): path for m, path in matches if m is not None}

    def _publish(self, checkpoint: Checkpoint) -> None:
        """Links ``last.params`` and ``best.params`` under names that stay."""
        _link(checkpoint.last, self.last)
        _link(checkpoint.best, self.best)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields another name to write a file under, and then renames it: no half file is ever seen."""
    aside = path.with_name(path.name + ".part")
    yield aside
    os.replace(aside, path)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with replacing(path) as aside:
        aside.write_text(text)


def format_json(content: object) -> str:
    """Returns indented and sorted JSON with a newline; paths become text."""
    return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _link(source: Path, target: Path) -> None:
    """Links a file under another name, or copies it on file systems without links."""
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
    """Flushes to the disk: a rename must not get there before the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


NAME = "run.lock"


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Locks ``folder`` for this process; the lock ends with the process, however that ends.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training into {folder}; wait for it, or choose another "
                "--checkname"
            ) from None
        yield


def is_held(folder: Path) -> bool:
    """Returns whether a process trains into ``folder`` now."""
    path = folder / NAME
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Saver:
    """A saver writes the checkpoints of one learner's run.

    Args:
        minutes: between checkpoints within an epoch; 0: none there.
        clock: seconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        learner: Learner,
        minutes: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder = folder
        self.learner = learner
        self.minutes = minutes
        self.clock = clock
        self.saved = clock()

    def is_due(self) -> bool:
        """Returns whether the last checkpoint is old enough for another one."""
        return bool(self.minutes) and self.clock() - self.saved >= 60 * self.minutes

    def save(self, state: RunState) -> None:
        """Writes a checkpoint. Raises CheckpointNotWritten if there is no room."""
        with self.folder.checkpoint(state) as aside:
            self.learner.write_parameters(aside.last)
            self.learner.write_optimizer(aside.optimizer)
        self.saved = self.clock()

    @contextmanager
    def keeping(self, read_state: Callable[[], RunState]) -> Iterator[None]:
        """Saves the place in the epoch if an error ends the run, such as a damaged file or a step
        that is not finite. The run can be resumed there once that is mended or skipped.
        """
        try:
            yield
        except CheckpointNotWritten:
            raise
        except (ValueError, OSError):
            state = read_state()
            if state.part.iterations:
                self.save(state)
                print(
                    f"{self.folder.path} is saved up to epoch {state.epochs_done + 1}, iteration "
                    f"{state.part.iterations}; --resume continues from there",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            raise
