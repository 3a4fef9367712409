"""``log.csv``: one line an epoch."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch; scores 0-1, NaN where nothing was scored.

    Attributes:
        epoch: from 1.
        learning_rate: at the epoch's first iteration.
        loss: mean over the steps that were taken.
        seconds: training, without the validation.
        skipped_steps: those whose loss or gradient was not finite.
    """

    epoch: int
    learning_rate: float
    loss: float
    seconds: float
    pixel_accuracy: float = math.nan
    miou: float = math.nan
    synthetic_miou: float = math.nan
    validation_seconds: float = 0.0
    skipped_steps: int = 0


COLUMNS = tuple(field.name for field in fields(EpochRecord))
WHOLE_NUMBERS = ("epoch", "skipped_steps")


def append_record(path: Path, record: EpochRecord) -> None:
    """Adds a line; the first one makes the header."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow(asdict(record))


def read_records(path: Path) -> tuple[EpochRecord, ...]:
    """All lines of a log; none where there is no log. Columns that it lacks have their defaults.

    A last line without its end (a killed process) is left out.

    Raises:
        ValueError: something else that is no log; the line is named.
    """
    if not path.exists():
        return ()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    records = []
    for number, row in enumerate(csv.DictReader(whole.splitlines()), 2):
        try:
            values = {name: _parse(name, row[name]) for name in COLUMNS if row.get(name)}
            records.append(EpochRecord(**values))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return tuple(records)


def keep_records(path: Path, epochs: int) -> tuple[EpochRecord, ...]:
    """Drops lines after epoch ``epochs``: those epochs are trained again. Returns the others."""
    kept = tuple(record for record in read_records(path) if record.epoch <= epochs)
    aside = path.with_name(path.name + ".part")
    aside.unlink(missing_ok=True)
    for record in kept:
        append_record(aside, record)
    if kept:
        os.replace(aside, path)
    else:
        path.unlink(missing_ok=True)
    return kept


def _parse(name: str, text: str) -> float:
    return int(text) if name in WHOLE_NUMBERS else float(text)
