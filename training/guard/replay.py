"""Repeats a refused step: ``python -m training.guard.replay RUN/non-finite/FILE.zip``.

The zip holds all it needs; the trainer is the one of the run. Dropout draws what it drew, but for a
step of several processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

from export.errors import ExportError
from training.guard.guard import OPTIMIZER, PARAMETERS, NonFiniteStep, read_batch, read_incident
from training.options import parse_options
from training.trainers import make_learner


def replay(path: Path) -> NonFiniteStep | float:
    """Returns the error that the step raises again, or its loss if it is finite now.

    Raises:
        ValueError: no such reproduction, or one that does not fit this version.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a reproduction of a step: {error}") from error
        options = parse_options(["--resume", str(folder)])
        batch, class_weights = read_batch(folder)
        learner = make_learner(options, len(class_weights))
        learner.start(class_weights)
        learner.read_parameters(folder / PARAMETERS)
        learner.read_optimizer(folder / OPTIMIZER)
        incident = read_incident(folder)
        place = (int(str(incident[key])) - 1 for key in ("epoch", "iteration"))
        learner.begin_step(*place)
        try:
            return learner.step(batch, float(str(incident["learning_rate"])))
        except NonFiniteStep as error:
            return error


def main() -> None:
    """Prints what the step does now."""
    p = argparse.ArgumentParser("python -m training.guard.replay")
    p.add_argument("reproduction", type=Path)
    a = p.parse_args()
    try:
        outcome = replay(a.reproduction)
    except (ValueError, ExportError) as error:
        sys.exit(f"replay: {error}")
    if isinstance(outcome, NonFiniteStep):
        print(f"not finite here either: {outcome}")
    else:
        print(f"finite here: loss {outcome}")


if __name__ == "__main__":
    main()
