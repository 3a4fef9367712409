"""MXNet graphs in a Triton repository: symbol, parameters and the ``model.py`` that runs them.

Triton has no MXNet backend; its Python backend runs ``mxnet_backend.py``. The tensors are those
of the ONNX models. MXNet itself is not needed to write any of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tritonclient.grpc import model_config_pb2

from export.errors import ExportError, InvalidParams, InvalidSymbol
from export.passes.build import LogitsCut, cut_at_logits, prune_heads
from export.passes.contract import CONFIDENCE, HEADS, IMAGE, LOGITS, MASK, check_heads
from export.repository.triton import ModelFacts, ModelFiles, Tensor, write_version
from export.symbols.graph import SYMBOL_FILE, Entry, Graph, Node, write_symbol
from export.symbols.networks import IMAGENET, Pixels
from export.symbols.params import Parameters, misfits, write_params
from export.symbols.shapes import infer_shapes
from export.symbols.sizes import retarget
from export.verify import check_with_mxnet, mxnet_installed
from serving.palette import MAX_BYTE_CLASSES

PARAMS_FILE = "network.params"
BACKEND_FILE = Path(__file__).with_name("mxnet_backend.py")
_MEAN, _SCALE = "image_mean", "image_scale"
# Where the image is what the network was trained to see; the last of these that there is.
_NORMALISED = ("image_normalised", "image_bgr")
# Between the logits and the outputs.
_HEAD_OPERATORS = frozenset({
    "_copy", "Cast", "argmax", "rint", "_mul_scalar", "max", "softmax", "_contrib_BilinearResize2D",
})  # fmt: skip


def write_mxnet_model(
    repository: Path,
    name: str,
    symbol: Graph,
    parameters: Parameters,
    size: tuple[int, int],
    facts: ModelFacts,
    max_batch_size: int | None = None,
    heads: Sequence[str] = HEADS,
    pixels: Pixels = IMAGENET,
) -> Path:
    """Adds an MXNet model at one static size (height, width); returns the version's folder.

    ``symbol`` may be built for another size. Raises what :func:`mxnet_files` and
    ``export.repository.triton.write_version`` raise.
    """
    files = mxnet_files(symbol, parameters, *size, heads, pixels)
    return write_version(repository, name, files, facts, max_batch_size)


def mxnet_files(
    symbol: Graph,
    parameters: Parameters,
    height: int,
    width: int,
    heads: Sequence[str] = HEADS,
    pixels: Pixels = IMAGENET,
) -> ModelFiles:
    """Returns what a version of an MXNet model is made of.

    Raises IllegalSize, InvalidSymbol, InvalidParams, or ExportError for other heads. Where MXNet is
    installed, writing them raises VerificationFailed if it does not run them.
    """
    cut = cut_at_logits(prune_heads(retarget(symbol, height, width)), height, width)
    check_heads(heads)
    if cut.classes > MAX_BYTE_CLASSES:
        raise ExportError(
            f"{cut.classes} classes: MXNet has no uint16, so --format mxnet takes at most"
            f" {MAX_BYTE_CLASSES}: leave it out"
        )
    weights = _weights(cut.graph, parameters, height, width, pixels)
    graph = _with_heads(_with_image(cut.graph, pixels.bgr), cut, height, width, heads)
    outputs = {
        MASK: Tensor(MASK, model_config_pb2.TYPE_UINT8, (height, width)),
        CONFIDENCE: Tensor(CONFIDENCE, model_config_pb2.TYPE_UINT8, (height, width)),
        LOGITS: Tensor(LOGITS, model_config_pb2.TYPE_FP32, (cut.classes, cut.height, cut.width)),
    }

    def write(folder: Path) -> None:
        write_symbol(graph, folder / SYMBOL_FILE)
        write_params(weights, folder / PARAMS_FILE)
        shutil.copyfile(BACKEND_FILE, folder / "model.py")
        if mxnet_installed():
            # Nobody is served by a model that MXNet refuses: this is not left out anywhere.
            files = folder / SYMBOL_FILE, folder / PARAMS_FILE
            check_with_mxnet(*files, IMAGE, (1, height, width, 3))

    image = Tensor(IMAGE, model_config_pb2.TYPE_UINT8, (height, width, 3))
    return ModelFiles("", "python", (image,), tuple(outputs[h] for h in heads), write)


def _weights(
    graph: Graph, parameters: Parameters, height: int, width: int, pixels: Pixels
) -> Parameters:
    """Returns the parameters that the graph uses, as float32, and those of the normalisation."""
    wanted = infer_shapes(graph, height, width).parameters
    found = {name: parameters.find(name) for name in wanted}
    if problems := list(misfits(wanted, found).values()):
        raise InvalidParams(f"{problems[0]}; do symbol and parameters belong together?")
    arguments = {n: a.astype(np.float32) for n, a in found.items() if a is not None}
    auxiliary = {n: arguments.pop(n) for n in list(arguments) if n in parameters.auxiliary}
    for name, values in (
        (_MEAN, 255 * np.asarray(pixels.mean, np.float64)),
        (_SCALE, 1 / (255 * np.asarray(pixels.std, np.float64))),
    ):
        arguments[name] = values.astype(np.float32).reshape(1, 3, 1, 1)
    return Parameters(arguments, auxiliary)


def _with_image(graph: Graph, bgr: bool) -> Graph:
    """Returns the graph with ``image`` uint8 [N, H, W, 3] RGB in place of the normalised float
    input."""
    data = graph.data_input()
    head = [
        Node("null", IMAGE),
        Node("null", _MEAN),
        Node("null", _SCALE),
        Node("transpose", "image_nchw", (Entry(0),), {"axes": "(0, 3, 1, 2)"}),
        Node("Cast", "image_float", (Entry(3),), {"dtype": "float32"}),
        Node("broadcast_sub", "image_centred", (Entry(4), Entry(1))),
        Node("broadcast_mul", _NORMALISED[0], (Entry(5), Entry(2))),
    ]
    if bgr:
        head.append(Node("reverse", _NORMALISED[1], (Entry(6),), {"axis": "(1,)"}))
    last = len(head) - 1
    moved = {data: last}
    for index in range(len(graph.nodes)):
        if index != data:
            moved[index] = last + len(moved)

    def move(entry: Entry) -> Entry:
        return Entry(moved[entry.node], entry.output)

    rest = tuple(
        replace(node, inputs=tuple(map(move, node.inputs)))
        for index, node in enumerate(graph.nodes)
        if index != data
    )
    return Graph((*head, *rest), tuple(map(move, graph.heads)))


def _with_heads(
    graph: Graph, cut: LogitsCut, height: int, width: int, heads: Sequence[str]
) -> Graph:
    """Returns the graph whose outputs are those of ``heads``, made of its one, the logits."""
    (source,) = graph.heads
    nodes = list(graph.nodes)
    outputs = {}

    def add(op: str, name: str, entry: Entry, **attrs: str) -> Entry:
        nodes.append(Node(op, name, (entry,), attrs))
        return Entry(len(nodes) - 1)

    full = source
    if set(heads) != {LOGITS} and (cut.height, cut.width) != (height, width):
        size = {"height": str(height), "width": str(width)}
        full = add("_contrib_BilinearResize2D", "logits_full_size", source, **size)
    if MASK in heads:
        outputs[MASK] = add("Cast", MASK, add("argmax", "labels", full, axis="1"), dtype="uint8")
    if CONFIDENCE in heads:
        likely = add("max", "largest", add("softmax", "shares", full, axis="1"), axis="1")
        bytes_ = add("rint", "rounded", add("_mul_scalar", "scaled", likely, scalar="255"))
        outputs[CONFIDENCE] = add("Cast", CONFIDENCE, bytes_, dtype="uint8")
    if LOGITS in heads:
        outputs[LOGITS] = add("_copy", LOGITS, source)
    return Graph(tuple(nodes), tuple(outputs[h] for h in heads))


def network_alone(graph: Graph) -> Graph:
    """Returns the network within a symbol that :func:`mxnet_files` wrote: ``data``, the normalised
    image, in; its logits out.

    Raises InvalidSymbol for other symbols.
    """
    ends = [index for index, node in enumerate(graph.nodes) if node.name in _NORMALISED]
    if not ends:
        raise InvalidSymbol(f"the symbol has none of the nodes {', '.join(_NORMALISED)}")
    nodes = list(graph.nodes)
    nodes[max(ends)] = Node("null", "data")
    sources = []
    for head in graph.heads:
        while nodes[head.node].op in _HEAD_OPERATORS:
            head = nodes[head.node].inputs[0]
        sources.append(head)
    network = Graph(tuple(nodes), tuple(dict.fromkeys(sources)))
    return network.pruned(network.heads)
