"""A model of the repository as the start of an export: the same network in another precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto
from rich.console import Console

from export.errors import ExportError, InvalidNetwork, UnsupportedPrecision
from export.onnx_import.source import read_network
from export.options import summary
from export.passes.build import set_metadata
from export.passes.mask_head import HEADS
from export.precision.half import is_half, widen
from export.precision.lower import PrecisionOptions, lower_precision
from export.progress import show_steps
from export.repository.files import ONNX_FILE, onnx_files
from export.repository.triton import ModelFacts, variant_name, write_version
from export.symbols.params import tool_version
from serving.engines.cut import find_precision
from serving.errors import InvalidModel
from serving.palette import LabelSet
from serving.repository import CONFIG_FILE, read_model


@dataclass(frozen=True)
class ExistingModel:
    """A version of a model.

    Attributes:
        model: its graph in float32.
        origin: its name, version and precision, then its own provenance.
        dataset: what its classes are of; None where it does not tell.
        resize: how the server brings images to its size; ``tile_overlap`` likewise.
    """

    name: str
    model: ModelProto
    labels: LabelSet
    family: str
    dataset: str | None
    origin: tuple[str, ...]
    resize: str
    tile_overlap: str | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its image."""
        dims = self.model.graph.input[0].type.tensor_type.shape.dim
        return dims[1].dim_value, dims[2].dim_value

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of its outputs."""
        return tuple(output.name for output in self.model.graph.output)

    def summary(self, folder: Path, precision: str) -> str:
        """Of a copy in ``folder``, for the terminal."""
        known = len(self.labels.names)
        return summary(folder, ONNX_FILE, known, self.size, precision, self.heads)


def read_existing(model: str, repository: Path) -> ExistingModel:
    """The served version of a model: a name in the repository, or a model's folder.

    Raises InvalidNetwork where there is none, UnsupportedPrecision where it is in int8.
    """
    path = Path(model) if (Path(model) / CONFIG_FILE).is_file() else repository / model
    if not (path / CONFIG_FILE).is_file():
        raise InvalidNetwork(
            f"--from {model} is no model of {repository} and no model's folder; `segserve models`"
            " lists them"
        )
    try:
        folder = read_model(path)
    except InvalidModel as error:
        raise InvalidNetwork(f"--from {model}: {error}") from error
    version = folder.versions[-1]
    graph = read_network(folder.graph(version))
    precision = find_precision(graph)
    if precision == "int8":
        raise UnsupportedPrecision(
            f"--from {model}: version {version} is in int8 already; start from fp32 or fp16"
        )
    parameters = {key: value.string_value for key, value in folder.config.parameters.items()}
    told = parameters.get("provenance", "")
    return ExistingModel(
        folder.name,
        widen(graph) if is_half(graph) else graph,
        folder.labels,
        folder.family,
        parameters.get("dataset"),
        (f"from {folder.name} version {version} ({precision})", *([told] if told else [])),
        folder.resize,
        parameters.get("tile_overlap"),
    )


@dataclass(frozen=True)
class CopyOptions:
    """What the copy is called and told; None is what the model itself has."""

    name: str | None = None
    family: str | None = None
    max_batch_size: int | None = None
    accuracy: str | None = None
    provenance: str | None = None


def check_outputs(existing: ExistingModel, file_format: str, heads: Sequence[str]) -> None:
    """Raises ExportError where another file or other outputs are asked for."""
    if file_format != "onnx":
        raise ExportError(f"--from {existing.name} stays ONNX; leave --format {file_format} out")
    if tuple(heads) not in (HEADS, existing.heads):
        raise ExportError(
            f"--from {existing.name} keeps its outputs {','.join(existing.heads)}; leave --head out"
        )


def write_copy(
    existing: ExistingModel,
    repository: Path,
    precision: PrecisionOptions,
    copy: CopyOptions,
    console: Console,
) -> tuple[Path, str]:
    """Writes the model in another precision; returns the version's folder and what it cost.

    Raises ExportError: as ``lower_precision`` and ``write_version`` do.
    """
    options = replace(precision, dataset=precision.dataset or existing.dataset)
    with show_steps(console, 2) as step:
        lowered = lower_precision(existing.model, options, len(existing.labels.names), step)
        step("writing the repository")
        told = [copy.provenance] if copy.provenance else []
        made = f"exported by segserve {tool_version()} {options.precision}"
        facts = ModelFacts(
            existing.labels,
            copy.family or existing.family,
            existing.dataset,
            lowered.accuracy_after(copy.accuracy),
            "; ".join([*told, *existing.origin, made, *lowered.provenance]),
            existing.resize,
            existing.tile_overlap,
        )
        set_metadata(lowered.model, facts.parameters())
        name = copy.name or variant_name(existing.name, options.precision)
        files = onnx_files(lowered.model)
        folder = write_version(repository, name, files, facts, copy.max_batch_size)
    return folder, lowered.outcome
