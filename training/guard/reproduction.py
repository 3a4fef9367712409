"""A refused step in one zip file: its batch, weights, optimizer, network and options."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.learner import Learner
from training.loader import Batch
from training.runs.checkpoint import RunFolder, format_json

PARAMETERS, OPTIMIZER = "network.params", "trainer.states"
BATCH, INCIDENT = "batch.npz", "incident.json"


def write_reproduction(
    path: Path,
    learner: Learner,
    batch: Batch,
    class_weights: npt.NDArray[np.float32],
    options: Mapping[str, object],
    incident: Mapping[str, object],
) -> None:
    """Writes the zip file aside, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        run = RunFolder(folder)
        learner.write_parameters(folder / PARAMETERS)
        learner.write_optimizer(folder / OPTIMIZER)
        learner.write_symbol(run.symbol)
        run.options.write_text(format_json(options))
        (folder / INCIDENT).write_text(format_json(incident))
        np.savez(
            folder / BATCH, images=batch.images, labels=batch.labels,
            names=np.array(batch.names), class_weights=class_weights,
        )  # fmt: skip
        aside = path.with_name(path.name + ".part")
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
        os.replace(aside, path)


def read_batch(folder: Path) -> tuple[Batch, npt.NDArray[np.float32]]:
    """The batch and the class weights of an unpacked reproduction."""
    with np.load(folder / BATCH) as file:
        names = tuple(str(name) for name in file["names"])
        return Batch(file["images"], file["labels"], names), file["class_weights"]


def read_incident(folder: Path) -> dict[str, object]:
    """What was told of the step."""
    told: dict[str, object] = json.loads((folder / INCIDENT).read_text())
    return told
