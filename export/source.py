"""Finds where a network comes from: named, of ``--pretrained``, or a model of the repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto
from rich.console import Console

from export.errors import ExportError, InvalidNetwork, UnsupportedPrecision
from export.onnx_import.source import read_network
from export.precision.half import widen
from export.progress import show_bytes
from export.symbols.find import NetworkName
from export.symbols.networks import (
    MODEL_ALIASES,
    NETWORKS,
    WITH_AUXILIARY,
    Pixels,
    default_backbone,
    pixels_of,
)
from export.weights.importing import FACTS_FILE
from export.weights.zoo import resolve
from serving.engines.graph import find_precision
from serving.errors import InvalidModel
from serving.models.repository import CONFIG_FILE, read_model
from serving.palette import LabelSet

WITH_STRIDES = "deeplabv3plus"


@dataclass(frozen=True)
class NamedNetwork:
    """A network as the options or published weights name it; None was not given."""

    model: str | None
    backbone: str | None
    width: float | None
    aux: bool | None
    output_stride: int | None
    dataset: str | None
    params: Path | None

    @property
    def network(self) -> NetworkName:
        """Returns the name that the symbol is looked up by. Raises ExportError where nothing was
        named."""
        if self.model is None:
            raise ExportError("name the network with --model, or give its --symbol")
        return NetworkName(
            self.model,
            self.backbone or default_backbone(self.model),
            1.0 if self.width is None else self.width,
            self.dataset,
            bool(self.aux),
            self.output_stride,
        )


def name_network(
    pretrained: str | None, symbol: Path | None, named: NamedNetwork, console: Console
) -> NamedNetwork:
    """Returns ``named``, or the network of ``pretrained``, of which the dataset alone may be named
    otherwise.

    Raises ExportError, also for options that do not apply to the network.
    """
    form = {"--width": named.width, "--aux": named.aux, "--output-stride": named.output_stride}
    if pretrained is not None:
        reason = f"--pretrained {pretrained} determines the network and its weights"
        refuse_given(
            reason,
            {
                "--model": named.model,
                "--backbone": named.backbone,
                **form,
                "--params": named.params,
            },
        )
    elif symbol is not None:
        refuse_given(f"--symbol {symbol} determines the network", form)
    else:
        _check_form(named)
    if pretrained is None:
        return named
    with show_bytes(console, f"weights {pretrained}") as on_bytes:
        found = resolve(pretrained, on_bytes)
    return NamedNetwork(
        found.model, found.backbone, found.width, found.aux,
        found.output_stride if found.model == WITH_STRIDES else None,
        named.dataset or found.dataset, found.params,
    )  # fmt: skip


RUN_FILE = "options.json"
_CHECKPOINT = "checkpoint-"


def known_pixels(named: NamedNetwork) -> tuple[Pixels, str] | None:
    """Returns what a network sees, and who says so; None where nobody does.

    Ours are known by name: the one that the options name, else the one that the files beside the
    parameters do (of ``segserve import-weights``, and of a training run).
    """
    model, backbone, said = named.model, named.backbone, "is trained so"
    if MODEL_ALIASES.get(model or "", model) not in NETWORKS:
        model, backbone, said = _trained_as(named.params)
    if model is None:
        return None
    return pixels_of(MODEL_ALIASES.get(model, model), backbone), f"{model} {said}"


def _trained_as(params: Path | None) -> tuple[str | None, str | None, str]:
    """Returns model, backbone and a reason of what lies beside a file of parameters."""
    if params is None:
        return None, None, ""
    folder = params.parent
    folders = [folder, folder.parent] if folder.name.startswith(_CHECKPOINT) else [folder]
    for path in (place / name for place in folders for name in (FACTS_FILE, RUN_FILE)):
        try:
            facts = json.loads(path.read_text("utf-8"))
            model, backbone = facts["model"], facts["backbone"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another program's file
        if model in NETWORKS and isinstance(backbone, str | None):
            return model, backbone, f"is trained so, and {path.name} beside the parameters names it"
    return None, None, ""


def _check_form(named: NamedNetwork) -> None:
    """Raises ExportError for what the named network, one of ours, does not have."""
    model = MODEL_ALIASES.get(named.model or "", named.model)
    if model not in NETWORKS:
        return
    if model != WITH_STRIDES:
        refuse_given(
            f"{model} has one output stride, {WITH_STRIDES} alone has several",
            {"--output-stride": named.output_stride},
        )
    if model not in WITH_AUXILIARY:
        refuse_given(
            f"{model} has no auxiliary head ({', '.join(WITH_AUXILIARY)} have one)",
            {"--aux": named.aux or None},
        )


def refuse_given(reason: str, options: Mapping[str, object]) -> None:
    """Raises ExportError where one of ``options`` was given, naming those that were.

    ``options`` are values by option; None was not given. ``reason`` begins the message.
    """
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise ExportError(f"{reason}; leave {', '.join(given)} out")


@dataclass(frozen=True)
class ExistingModel:
    """A version of a model.

    Attributes:
        model: its graph in float32.
        origin: its name, version and precision, then its own provenance.
        dataset: what its classes are of; None where it does not say.
        resize: how the server resizes images to its size; ``tile_overlap`` likewise.
    """

    name: str
    model: ModelProto
    labels: LabelSet
    family: str | None
    dataset: str | None
    origin: tuple[str, ...]
    resize: str
    tile_overlap: str | None

    @property
    def size(self) -> tuple[int, int]:
        """Returns the height and width of its image."""
        dims = self.model.graph.input[0].type.tensor_type.shape.dim
        return dims[1].dim_value, dims[2].dim_value

    @property
    def heads(self) -> tuple[str, ...]:
        """Returns the names of its outputs."""
        return tuple(output.name for output in self.model.graph.output)


def read_existing(model: str, repository: Path) -> ExistingModel:
    """Returns the served version of a model: a name in the repository, or a model's folder.

    Raises InvalidNetwork where there is none, UnsupportedPrecision where it is in int8.
    """
    path = Path(model) if (Path(model) / CONFIG_FILE).is_file() else repository / model
    if not (path / CONFIG_FILE).is_file():
        raise InvalidNetwork(
            f"--from {model} is not a valid model: expected a name in {repository}, or a model's"
            " folder; `segserve models` lists the names"
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
            f"--from {model}: version {version} is already int8; choose an fp32 or fp16 model"
        )
    parameters = {key: value.string_value for key, value in folder.config.parameters.items()}
    named = parameters.get("provenance", "")
    return ExistingModel(
        folder.name,
        widen(graph) if precision == "fp16" else graph,
        folder.labels,
        parameters.get("family"),
        parameters.get("dataset"),
        (f"from {folder.name} version {version} ({precision})", *([named] if named else [])),
        folder.resize,
        parameters.get("tile_overlap"),
    )
