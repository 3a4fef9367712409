"""A file of foreign weights -> a folder with the network's symbol, its parameters and their origin.

The network is built by MXNet in a process of its own; every array of it must be there, in its
shape, and no other. ``weights.json`` keeps what is known of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from export.errors import TracingFailed, WeightsError
from export.symbols.find import NetworkSpec, trace_symbol
from export.symbols.graph import BATCH_NORMS, SYMBOL_FILE, Graph, write_symbol
from export.symbols.params import Parameters, digest, misfits, write_params
from export.symbols.shapes import infer_shapes
from export.weights.files import Arrays, read_arrays, stored_file
from export.weights.sources import (
    Translate,
    Translated,
    translate_fast_seg,
    translate_gluoncv,
    translate_liminn,
    translate_tf_deeplab,
)

PARAMS_FILE = "network.params"
FACTS_FILE = "weights.json"
NAMED_PROBLEMS = 5


@dataclass(frozen=True)
class Source:
    """Says where weights come from: how they are renamed, and the size to build the network for."""

    translate: Translate
    size: tuple[int, int]
    about: str


SOURCES: Mapping[str, Source] = {
    "gluoncv": Source(translate_gluoncv, (480, 480), "save_parameters of GluonCV's networks"),
    "fast_seg": Source(translate_fast_seg, (1024, 2048), "ICNet of lxtGH/Fast_Seg, .pth"),
    "liminn": Source(translate_liminn, (1024, 2048), "ICNet of liminn and of Ascend, .pth"),
    "tf_deeplab": Source(
        translate_tf_deeplab, (513, 513), "TensorFlow's DeepLabV3+ on Xception-65"
    ),
}


@dataclass(frozen=True)
class ImportedWeights:
    """What ``weights.json`` says; ``params`` is the file beside it, ``dataset`` whose classes it
    knows, where that is known."""

    params: Path
    model: str
    backbone: str
    classes: int
    width: float
    aux: bool
    output_stride: int
    size: tuple[int, int]
    dataset: str | None
    origin: str

    def flags(self) -> list[str]:
        """Returns the network, as ``train.py``, ``test.py`` and ``segserve export`` take it."""
        flags = ["--model", self.model, "--backbone", self.backbone]
        flags += ["--width", f"{self.width:g}"] if self.width != 1 else []
        flags += ["--aux"] if self.aux else []
        if self.model == "deeplabv3plus":
            flags += ["--output-stride", str(self.output_stride)]
        return flags + (["--dataset", self.dataset] if self.dataset else [])


def import_weights(
    path: Path,
    source: str,
    folder: Path,
    size: tuple[int, int] | None = None,
    output_stride: int = 16,
    dataset: str | None = None,
) -> ImportedWeights:
    """Reads ``path`` as ``source`` of ``SOURCES`` has it, and writes ``folder``.

    Args:
        size: height and width of the symbol; the parameters fit every size.

    Raises:
        WeightsError: the file is another network's, or damaged; or MXNet cannot build the network.
    """
    if source not in SOURCES:
        raise WeightsError(
            f"--from {source!r} is not a valid source: expected one of {', '.join(SOURCES)}"
        )
    found = SOURCES[source].translate(read_arrays(path))
    size = size or SOURCES[source].size
    graph, names = build_symbol(found, size, output_stride)
    parameters = fit_parameters(graph, names, found.arrays, size, path)
    folder.mkdir(parents=True, exist_ok=True)
    write_symbol(graph, folder / SYMBOL_FILE)
    write_params(parameters, folder / PARAMS_FILE)
    stored = stored_file(path)
    imported = ImportedWeights(
        folder / PARAMS_FILE, found.model, found.backbone, found.classes, found.width, found.aux,
        output_stride, size, dataset, f"{source} {stored.name} sha256 {digest(stored)}",
    )  # fmt: skip
    facts = {key: value for key, value in asdict(imported).items() if key != "params"}
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    return imported


def read_imported(folder: Path) -> ImportedWeights:
    """Returns what ``import_weights`` wrote. Raises WeightsError."""
    try:
        facts = json.loads((folder / FACTS_FILE).read_text())
        size = int(facts["size"][0]), int(facts["size"][1])
        return ImportedWeights(**{**facts, "size": size, "params": folder / PARAMS_FILE})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{folder} does not hold imported weights ({error}): expected a folder of segserve"
            " import-weights"
        ) from error


def fit_parameters(
    graph: Graph, names: Mapping[str, str], arrays: Arrays, size: tuple[int, int], path: Path
) -> Parameters:
    """Returns the arrays under the symbol's names.

    ``names`` maps every structural name to the symbol's. Raises WeightsError naming what is
    missing, unknown or of another shape.
    """
    named = {names.get(name, name): array for name, array in arrays.items()}
    wanted = infer_shapes(graph, *size).parameters
    problems = list(misfits(wanted, named).values())
    problems += [f"{name} is unknown" for name in named if name not in wanted]
    if problems:
        more = len(problems) - NAMED_PROBLEMS
        raise WeightsError(
            f"{path} does not fit the network: {'; '.join(problems[:NAMED_PROBLEMS])}"
            + (f"; and {more} more" if more > 0 else "")
        )
    statistics = {
        graph.nodes[entry.node].name
        for _, node in graph.operators()
        if node.op in BATCH_NORMS
        for entry in node.inputs[3:5]
    }
    ready = {name: np.asarray(named[name], np.float32) for name in wanted}
    return Parameters(
        {name: array for name, array in ready.items() if name not in statistics},
        {name: array for name, array in ready.items() if name in statistics},
    )


def build_symbol(
    found: Translated, size: tuple[int, int], output_stride: int
) -> tuple[Graph, Mapping[str, str]]:
    """Returns the symbol, and its names by structural ones. Raises WeightsError, with MXNet's
    reason."""
    network = NetworkSpec(found.model, found.backbone, found.width, found.aux, output_stride)
    try:
        traced = trace_symbol(network, found.classes, size)
    except TracingFailed as error:
        raise WeightsError(f"MXNet could not build {found.model}: {error}") from error
    return traced.graph, traced.names
