"""Builds graphs with random weights once, and caches them in ``~/.cache/segserve/graphs/``.

``$SEGSERVE_CACHE_DIR`` names another cache folder. A file's name holds the hash of what it is made
from: the symbol, the size, the seed, and the exporter's own sources. int8 takes its ranges from
one image of noise: good for the time that a network takes, not for what it answers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, checker, helper

import export
from export.lowering.convert import BATCH, DATA, convert
from export.passes.build import build_model, prune_heads
from export.passes.contract import IMAGE, MASK
from export.passes.onnx_graph import OnnxGraph, name_nodes
from export.precision.half import to_half
from export.precision.quantise import Recipe, calibrate, quantise
from export.symbols.find import NetworkName, find_symbol, published_symbol
from export.symbols.graph import Graph, read_symbol
from export.symbols.networks import IMAGENET
from export.symbols.params import Parameters, random_params
from export.symbols.sizes import retarget
from serving.palette import load_labels
from serving.settings import cache_folder

SEED = 0


def built_graph(
    network: NetworkName, classes: int, height: int, width: int, precision: str = "fp32"
) -> Path:
    """Returns the ONNX file of a network with random weights; builds it if it is not cached.

    Args:
        precision: ``fp32``, ``fp16`` or ``int8``.

    Raises ExportError where the network is unknown or the size illegal.
    """
    graph = retarget(symbol_of(network, classes, height, width), height, width)
    key = _key(graph, height, width)
    suffix = "" if precision == "fp32" else f"_{precision}"
    stem = f"{network.stem}_{classes}c_{height}x{width}{suffix}_"
    path = cache_folder() / "graphs" / f"{stem}{key}.onnx"
    if path.is_file():
        return path
    if precision == "fp32":
        model = build_model(graph, random_params(graph, height, width, SEED), height, width)
    else:
        model = onnx.load(str(built_graph(network, classes, height, width)))
        model = lower(model, precision)
    _keep(model, path, stem)
    return path


def parse_network(text: str, dataset: str) -> NetworkName:
    """Reads NETWORK_BACKBONE. Raises ValueError where the text is not one."""
    name, _, backbone = text.strip().partition("_")
    if not backbone:
        raise ValueError(
            f"{text!r} is not a valid network: expected NETWORK_BACKBONE, as icnet_resnet50"
        )
    return NetworkName(name, backbone, 1.0, dataset)


def network_at(
    network: NetworkName, classes: int, height: int, width: int
) -> tuple[Graph, Parameters]:
    """Returns the symbol of a network moved to a size, and random weights.

    Raises ExportError where the network is unknown or the size illegal.
    """
    graph = retarget(symbol_of(network, classes, height, width), height, width)
    return graph, random_params(graph, height, width, SEED)


def lower(
    model: onnx.ModelProto,
    precision: str,
    recipe: Recipe = Recipe(),  # noqa: B008
) -> onnx.ModelProto:
    """Returns a float32 graph in ``fp16``, or in ``int8`` by a recipe; no gate judges it."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    name_nodes(named)
    if precision == "fp16":
        return to_half(named)
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    noise = np.random.default_rng(SEED).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return quantise(named, calibrate(named, [noise], recipe.method), recipe)


def _keep(model: onnx.ModelProto, path: Path, stem: str) -> None:
    """Writes a graph in one step, and removes those of other keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".building-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        for outdated in path.parent.glob(f"{stem}[0-9a-f]*.onnx"):
            if "_" not in outdated.name.removeprefix(stem):
                outdated.unlink(missing_ok=True)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def symbol_of(network: NetworkName, classes: int, height: int, width: int) -> Graph:
    """Returns the symbol of a network; a published one is given another number of classes.

    Raises ExportError where it is not known.
    """
    published = published_symbol(network)
    if published is None:
        return find_symbol(network, None, classes, (height, width)).graph
    symbol = read_symbol(published)
    own = len(load_labels(network.dataset).names)
    return symbol if own == classes else _with_classes(symbol, own, classes)


def _with_classes(symbol: Graph, own: int, classes: int) -> Graph:
    """Returns the symbol with other classifiers; only they have a filter for each class."""
    nodes = tuple(
        replace(node, attrs={**node.attrs, "num_filter": str(classes)})
        if node.attrs.get("num_filter") == str(own)
        else node
        for node in symbol.nodes
    )
    return Graph(nodes, symbol.heads)


def _key(graph: Graph, height: int, width: int) -> str:
    digest = hashlib.sha256(f"{height}x{width} {SEED} {graph.heads}".encode())
    for node in graph.nodes:
        digest.update(repr((node.op, node.name, node.inputs, sorted(node.attrs.items()))).encode())
    for source in sorted(Path(export.__path__[0]).rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def plain_model(symbol: Graph, parameters: Parameters, height: int, width: int) -> ModelProto:
    """Returns the graph that an obvious export gives, ``image`` to ``mask``, nothing rewritten.

    For networks whose first output has the image's size, as the published ones.
    """
    model = convert(prune_heads(retarget(symbol, height, width)), parameters, height, width)
    graph = OnnxGraph(model)
    logits = model.graph.output[0].name
    for name, values in (("image_mean", IMAGENET.mean), ("image_std", IMAGENET.std)):
        graph.set_constant(name, np.array(values, np.float32).reshape(3, 1, 1))
    graph.set_constant("image_largest", np.array(255, np.float32))
    graph.insert_first(
        [
            helper.make_node("Cast", [IMAGE], ["image_float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["image_float", "image_largest"], ["image_unit"]),
            helper.make_node("Transpose", ["image_unit"], ["image_nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("Sub", ["image_nchw", "image_mean"], ["image_centred"]),
            helper.make_node("Div", ["image_centred", "image_std"], [DATA]),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", [logits], ["labels"], axis=1, keepdims=0),
            helper.make_node("Cast", ["labels"], [MASK], to=TensorProto.UINT8),
        ]
    )
    image = helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [BATCH, height, width, 3])
    model.graph.input[0].CopyFrom(image)
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(MASK, TensorProto.UINT8, [BATCH, height, width])
    )
    checker.check_model(model)
    return model
