"""What a run folder tells of its run, without a framework."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from training.runs.checkpoint import PartOfEpoch, RunFolder
from training.runs.epoch_log import EpochRecord, read_records
from training.runs.lock import is_held
from training.runs.saved_options import Json, read_options


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        state: ``running``, ``finished`` or ``stopped`` (killed or ended early; can be resumed).
        part: of the next epoch, where the run ended within it.
        best_miou: 0-1; None where nothing was scored.
        best_epoch: from 1.
        last_loss: mean of the last finished epoch; None before that.
        seconds: training and validation of the finished epochs.
        started: of the first process; None where the folder does not tell.
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
    """Run folders at or below ``folder``, by name."""
    for path in sorted(folder.rglob("options.json")):
        if "non-finite" not in path.parts:
            yield path.parent


def summarise_run(path: Path, name: str) -> RunSummary:
    """Reads a run folder; ``name`` is what it is called in a list.

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
    """The finished epochs of a run."""
    return read_records(RunFolder(path).log)


def differing_options(one: Path, other: Path) -> list[tuple[str, Json, Json]]:
    """(name, one's value, other's) of each option that differs; None where a run lacks it.

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
