"""Graphs with random weights, built once and kept: ``~/.cache/segserve/graphs/``.

The folder is ``$SEGSERVE_CACHE_DIR`` where set. A file's name holds the hash of what it is made
from: the symbol, the size, the seed, and the exporter's own sources.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import export
from export.build import build_model
from export.random_params import random_params
from export.retarget import retarget
from export.symbol import Graph, read_symbol
from export.symbol_lookup import PUBLISHED, NetworkName, find_symbol

SEED = 0


def cache_folder() -> Path:
    """Where built graphs are kept."""
    folder = os.environ.get("SEGSERVE_CACHE_DIR")
    return Path(folder) if folder else Path.home() / ".cache" / "segserve"


def built_graph(network: NetworkName, classes: int, height: int, width: int) -> Path:
    """The ONNX file of a network with random weights; builds it where it is not kept yet.

    Raises ExportError where the network is unknown or the size illegal.
    """
    graph = retarget(_symbol(network, classes, height, width), height, width)
    key = _key(graph, height, width)
    path = cache_folder() / "graphs" / f"{network.stem}_{height}x{width}_{key}.onnx"
    if path.is_file():
        return path
    model = build_model(graph, random_params(graph, height, width, SEED), height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".building-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        for outdated in path.parent.glob(f"{network.stem}_{height}x{width}_*.onnx"):
            outdated.unlink(missing_ok=True)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


def _symbol(network: NetworkName, classes: int, height: int, width: int) -> Graph:
    published = PUBLISHED / f"{network.stem}.json.gz"
    if published.is_file():
        return read_symbol(published)
    return find_symbol(network, None, classes, (height, width)).graph


def _key(graph: Graph, height: int, width: int) -> str:
    digest = hashlib.sha256(f"{height}x{width} {SEED} {graph.heads}".encode())
    for node in graph.nodes:
        digest.update(repr((node.op, node.name, node.inputs, sorted(node.attrs.items()))).encode())
    for source in sorted(Path(export.__path__[0]).rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
