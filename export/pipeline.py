"""The exporter as one call: a network in, a version of a model in a Triton repository out.

``segserve export`` is :func:`export_symbol` with options. ``segserve import-onnx`` gets its network
elsewhere and ends in :func:`write_network`, as every export does.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto
from rich.console import Console

from export.datasets import check_labels, find_labels, generic_labels
from export.errors import (
    ExportError,
    InvalidParams,
    UnsupportedOperator,
    UnsupportedPrecision,
    VerificationFailed,
)
from export.passes.build import (
    REWRITES,
    build_model,
    check_opset,
    number_of_classes,
    prune_heads,
    set_metadata,
)
from export.passes.contract import HEADS, check_heads
from export.precision.lower import PrecisionOptions, check_options, lower_precision
from export.progress import Steps, show_steps
from export.repository.mxnet_model import mxnet_files
from export.repository.triton import (
    ONNX_FILE,
    ModelFacts,
    ModelFiles,
    onnx_files,
    variant_name,
    write_version,
)
from export.source import (
    ExistingModel,
    NamedNetwork,
    known_pixels,
    name_network,
    read_existing,
    refuse_given,
)
from export.symbols.find import FoundSymbol, find_symbol, own_size
from export.symbols.graph import SYMBOL_FILE, Graph, read_symbol
from export.symbols.networks import IMAGENET, Pixels, Triple, choose_pixels
from export.symbols.params import Parameters, digest, random_params, read_params, tool_version
from export.verify import find_not_finite, mxnet_installed, not_finite, telling_images, verify
from serving.palette import LabelSet, canonical_name

_STEPS = 6


@dataclass(frozen=True)
class Target:
    """Says where a model is written, and what is stored with it.

    Attributes:
        repository: the folder of models.
        name: the model's; None is the network's, the precision after it.
        family: requests to it are routed to the member that best fits the image; None is none, or
            the existing model's.
        max_batch_size: None is 4, or the existing model's.
        accuracy: measured accuracy and its protocol.
        provenance: where the weights come from.
    """

    repository: Path = Path("model_repository")
    name: str | None = None
    family: str | None = None
    max_batch_size: int | None = None
    accuracy: str | None = None
    provenance: str | None = None


@dataclass(frozen=True)
class ExportRequest:
    """The options of one export, with the defaults of ``segserve export``.

    The network is named by ``model``, or is that of ``symbol``, ``pretrained`` or ``existing``.

    Attributes:
        model: the network's name (``export.symbols.networks.NETWORKS``).
        backbone: None is the one that the network is known with.
        width: channel multiplier; None is 1.
        aux: the network was trained with an auxiliary head, which is not served.
        output_stride: 8 or 16, of networks that have several.
        existing: a model of the repository, or its folder: the same network in another precision.
        symbol: a symbol.json, instead of ``model``.
        params: the parameters' file; None makes random ones.
        pretrained: a name of GluonCV's zoo, or a folder of ``segserve import-weights``.
        size: height and width; None is the symbol's own.
        dataset: names the classes, and is what ``precision`` is calibrated on and judged by.
        labels: a file of class names, instead of the dataset's.
        mean: of RGB values from 0 to 1, three numbers (as text: comma-separated); None is what the
            network was trained on, where it is one of ours. ``std`` and ``bgr`` (blue comes first)
            likewise.
        precision: fp32, fp16 or int8, and how it is made and judged; ``dataset`` is this request's.
        heads: of mask, logits and confidence, one of the first two at least.
        file_format: ``onnx`` or ``mxnet``.
        opset: 17 or 19; None is the lowest that holds the network's operators.
        check: compare with MXNet where that is installed.
        target: where it is written.
        pixels: stands for ``mean``, ``std`` and ``bgr`` (``export.symbols.networks.PRESETS``).
    """

    model: str | None = None
    backbone: str | None = None
    width: float | None = None
    aux: bool | None = None
    output_stride: int | None = None
    existing: str | None = None
    symbol: Path | None = None
    params: Path | None = None
    pretrained: str | None = None
    size: tuple[int, int] | None = None
    dataset: str | None = None
    labels: Path | None = None
    mean: Triple | str | None = None
    std: Triple | str | None = None
    bgr: bool | None = None
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    heads: tuple[str, ...] = HEADS
    file_format: str = "onnx"
    opset: int | None = None
    check: bool = True
    target: Target = field(default_factory=Target)
    pixels: str | None = None


@dataclass(frozen=True)
class Written:
    """A version that was written; ``str()`` says it in one line.

    Attributes:
        folder: the version's, ``<repository>/<name>/<version>``.
        file: the main one in it.
        classes: how many the network distinguishes.
        size: height and width of its images.
        heads: the names of its outputs.
        notes: one line each, for people: what was compared, measured and left out.
    """

    folder: Path
    file: str
    classes: int
    size: tuple[int, int]
    precision: str
    heads: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.folder}/{self.file}: {self.folder.parent.name} version {self.folder.name},"
            f" {self.classes} classes, {self.size[0]}x{self.size[1]}, {self.precision},"
            f" {','.join(self.heads)}"
        )


def export_symbol(request: ExportRequest, console: Console | None = None) -> Written:
    """Exports a network and writes it; nothing is written where anything fails.

    Progress is shown on ``console``; None shows nothing. Raises OSError, or ExportError, whose
    message names the command's option that helps.
    """
    console = console or Console(quiet=True)
    check_heads(request.heads)
    if request.existing is not None:
        return _export_existing(request, request.existing, console)
    named = name_network(
        request.pretrained,
        request.symbol,
        NamedNetwork(
            request.model, request.backbone, request.width, request.aux, request.output_stride,
            request.dataset, request.params,
        ),
        console,
    )  # fmt: skip
    options = replace(request.precision, dataset=named.dataset)
    check_options(options)
    _check_format(request.file_format, options.precision, request.opset)
    check_opset(request.opset)
    pixels, said = _choose_pixels(request, named)
    labels = find_labels(named.dataset, request.labels, options.root)
    with show_steps(console, _STEPS) as step:
        step("reading the symbol")
        network = _read_network(request, named, labels, pixels, step)
        step("building the graph")
        stem = named.model or network.source.partition(".")[0].removesuffix("-symbol")
        facts = ModelFacts(
            network.labels,
            request.target.family,
            named.dataset and canonical_name(named.dataset),
            request.target.accuracy,
            "; ".join(_origin(request, named, network)),
        )
        if request.file_format == "mxnet":
            name = request.target.name or variant_name(stem, "mxnet")
            with suppress(UnsupportedOperator):  # MXNet runs some that have no ONNX form
                _make_graph(request, network)
            files = mxnet_files(
                network.graph, network.parameters, *network.size, request.heads, pixels
            )
            step("writing the repository")
            folder = _write(request.target, name, files, facts)
            ran = "run once by MXNet" if mxnet_installed() else "MXNet is not installed: not run"
            outcomes: tuple[str, ...] = (f"the MXNet graph itself, nothing to compare; {ran}",)
        else:
            name = request.target.name or variant_name(stem, options.precision)
            model, compared, verified = _build(request, network, step)
            if verified:
                facts = replace(facts, provenance=f"{facts.provenance}; {compared}")
            folder, outcome = write_network(model, facts, options, request.target, name, step)
            outcomes = (compared, outcome)
    notes = [
        f"sees {pixels}: {said}",
        "random weights: labels are meaningless, speed is that of trained weights"
        if named.params is None
        else "",
        "classes without names; name them with --dataset or --labels"
        if named.dataset is None and request.labels is None
        else "",
        *outcomes,
    ]
    return Written(
        folder,
        ONNX_FILE if request.file_format == "onnx" else SYMBOL_FILE,
        len(network.labels.names),
        network.size,
        options.precision,
        request.heads,
        tuple(filter(None, notes)),
    )


def write_network(
    model: ModelProto,
    facts: ModelFacts,
    precision: PrecisionOptions,
    target: Target,
    name: str,
    step: Steps,
    metadata: dict[str, str] | None = None,
) -> tuple[Path, str]:
    """Lowers the precision of a float32 graph of the contract and writes it; every export ends
    here.

    What is measured is added to the facts. ``metadata`` is stored in the file beside them. Returns
    the version's folder and a line about what the precision cost. Raises what ``lower_precision``
    and ``write_version`` raise.
    """
    lowered = lower_precision(model, precision, len(facts.labels.names), step)
    facts = replace(
        facts,
        accuracy=lowered.accuracy_after(facts.accuracy),
        provenance="; ".join((facts.provenance, *lowered.provenance)),
    )
    step("writing the repository")
    set_metadata(lowered.model, facts.parameters() | (metadata or {}))
    return _write(target, name, onnx_files(lowered.model), facts), lowered.outcome


@dataclass(frozen=True)
class _Network:
    """A network at its size, with its weights and classes."""

    source: str
    graph: Graph
    parameters: Parameters
    size: tuple[int, int]
    labels: LabelSet
    pixels: Pixels


def _choose_pixels(request: ExportRequest, named: NamedNetwork) -> tuple[Pixels, str]:
    """Returns what the network sees, and why. Raises ExportError where nothing says so."""
    known, said = known_pixels(named) or (None, "as the options say")
    if known is None and named.params is None and request.pixels is None:
        known, said = IMAGENET, "assumed: random weights were trained on nothing"
    asked = (request.mean, request.std, request.bgr, request.pixels)
    if any(value is not None for value in asked):
        said = "as the options say"
    return choose_pixels(known, *asked), said


def _read_network(
    request: ExportRequest,
    named: NamedNetwork,
    labels: LabelSet | None,
    pixels: Pixels,
    step: Steps,
) -> _Network:
    """Returns the symbol moved to its size, and its parameters, or random ones."""
    if request.symbol is not None:
        found = FoundSymbol(read_symbol(request.symbol), request.symbol.name)
    else:
        known = len(labels.names) if labels else None
        found = find_symbol(named.network, named.params, known, request.size)
    size = request.size or own_size(found)
    graph = found.at(*size)
    classes = number_of_classes(found.graph, *size)
    labels = labels or generic_labels(classes)
    check_labels(labels, classes)
    step("reading the parameters" if named.params else "making random parameters")
    parameters = read_params(named.params) if named.params else random_params(graph, *size)
    _check_finite(parameters, prune_heads(graph), named.params)
    return _Network(found.source, graph, parameters, size, labels, pixels)


def _check_finite(parameters: Parameters, graph: Graph, file: Path | None) -> None:
    """Raises InvalidParams where a parameter that the network uses is not a number."""
    found = {name: parameters.find(name) for name in graph.variables()}
    arrays = {name: array for name, array in found.items() if array is not None}
    wrong = [name for name, array in arrays.items() if not_finite(array)]
    if wrong:
        raise InvalidParams(
            f"{file}: {', '.join(wrong[:3])} {'holds' if len(wrong) == 1 else 'hold'} NaN or"
            f" infinity ({len(wrong)} of {len(arrays)} parameters): the training broke off there;"
            " export an earlier checkpoint"
        )


def _origin(request: ExportRequest, named: NamedNetwork, network: _Network) -> list[str]:
    """Returns the provenance, as far as it is known before anything is measured."""
    height, width = network.size
    weights = "random weights"
    if named.params is not None:
        weights = f"parameters {named.params.name} sha256 {digest(named.params)}"
    made = f"exported by segserve {tool_version()} at {height}x{width}"
    return [
        *([request.target.provenance] if request.target.provenance else []),
        f"symbol {network.source}",
        weights,
        f"{made} {request.precision.precision}",
        f"sees {network.pixels}",
    ]


def _make_graph(request: ExportRequest, network: _Network) -> ModelProto:
    """Returns the serving graph. Raises VerificationFailed where it does not give numbers."""
    height, width = network.size
    build = partial(
        build_model, network.graph, network.parameters, height, width, request.heads,
        pixels=network.pixels, opset=request.opset,
    )  # fmt: skip
    model = build()
    images = telling_images(height, width)
    if request.check and (broken := find_not_finite(model, images)):
        # The rewrites join nodes: the symbol's own are named.
        broken = find_not_finite(build(without=REWRITES), images) or broken
        raise VerificationFailed(
            f"{network.source} does not give numbers: {broken}; nothing was written. Are its"
            " parameters those of a finished training?"
        )
    return model


def _build(request: ExportRequest, network: _Network, step: Steps) -> tuple[ModelProto, str, bool]:
    """Returns the serving graph, what came of the comparison with MXNet, and whether there was
    one."""
    model = _make_graph(request, network)
    if not request.check:
        step("not compared with MXNet")
        return model, "not compared with MXNet", False
    step("comparing with MXNet")
    if not mxnet_installed():
        return model, "MXNet is not installed: the comparison with it was skipped", False
    found = verify(model, network.graph, network.parameters, *network.size, network.pixels)
    return model, str(found), True


def _check_format(file_format: str, precision: str, opset: int | None) -> None:
    """Raises ExportError for an unknown ``--format``, or options that it leaves no room for."""
    if file_format not in ("onnx", "mxnet"):
        raise ExportError(f"--format {file_format} is not a valid format: expected onnx or mxnet")
    if file_format == "mxnet" and precision != "fp32":
        raise UnsupportedPrecision(f"--format mxnet is fp32; for {precision} use --format onnx")
    if file_format == "mxnet" and opset is not None:
        raise ExportError(f"--opset {opset} is for --format onnx; leave one of the two out")


def _export_existing(request: ExportRequest, existing: str, console: Console) -> Written:
    """Exports a model of the repository once more, in another precision."""
    refuse_given(
        f"--from {existing} determines the network, size, classes and pixels",
        {
            "--model": request.model, "--backbone": request.backbone, "--width": request.width,
            "--aux": request.aux, "--output-stride": request.output_stride,
            "--symbol": request.symbol, "--params": request.params,
            "--pretrained": request.pretrained, "--size": request.size,
            "--labels": request.labels, "--mean": request.mean, "--std": request.std,
            "--bgr or --rgb": request.bgr, "--pixels": request.pixels, "--opset": request.opset,
        },
    )  # fmt: skip
    target = request.target
    start = read_existing(existing, target.repository)
    _check_outputs(start, request.file_format, request.heads)
    options = replace(request.precision, dataset=request.dataset or start.dataset)
    facts = ModelFacts(
        start.labels,
        target.family or start.family,
        start.dataset,
        target.accuracy,
        "; ".join(
            (
                *([target.provenance] if target.provenance else []),
                *start.origin,
                f"exported by segserve {tool_version()} {options.precision}",
            )
        ),
        start.resize,
        start.tile_overlap,
    )
    name = target.name or variant_name(start.name, options.precision)
    with show_steps(console, 2) as step:
        folder, outcome = write_network(start.model, facts, options, target, name, step)
    known = len(start.labels.names)
    notes = tuple(filter(None, (outcome,)))
    return Written(folder, ONNX_FILE, known, start.size, options.precision, start.heads, notes)


def _check_outputs(existing: ExistingModel, file_format: str, heads: tuple[str, ...]) -> None:
    """Raises ExportError for another file format or other outputs."""
    if file_format != "onnx":
        raise ExportError(
            f"--from {existing.name} is an ONNX model; leave --format {file_format} out"
        )
    if heads not in (HEADS, existing.heads):
        raise ExportError(
            f"--from {existing.name} keeps its outputs {','.join(existing.heads)}; leave --head out"
        )


def _write(target: Target, name: str, files: ModelFiles, facts: ModelFacts) -> Path:
    return write_version(target.repository, name, files, facts, target.max_batch_size)
