"""MXNet's forward and backward pass of a symbol in training, for a comparison with PyTorch's.

Imported by scripts that run in a process where MXNet may live.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from export.symbols.graph import Graph, Node, read_symbol, write_symbol

IGNORED = 255


def without_dropout(graph: Graph) -> Graph:
    """The graph with every dropout at probability 0."""
    return replace(
        graph,
        nodes=tuple(
            replace(node, attrs={**node.attrs, "p": "0"}) if node.op == "Dropout" else node
            for node in graph.nodes
        ),
    )


def without_crops(graph: Graph, height: int, width: int) -> Graph:
    """``Crop`` to the image, which MXNet has in float32 only, as ``slice``."""

    def rewrite(node: Node) -> Node:
        if node.op != "Crop":
            return node
        row, column = node.integers("offset", (0, 0))
        bounds = {
            "begin": f"(None, None, {row}, {column})",
            "end": f"(None, None, {row + height}, {column + width})",
        }
        return replace(node, op="slice", inputs=node.inputs[:1], attrs=bounds)

    return replace(graph, nodes=tuple(map(rewrite, graph.nodes)))


def write_gradients(name: str, folder: Path, dtype: str) -> None:
    """Reads ``NAME.json``, ``NAME.params`` and ``NAME-data.npy``; switches dropout off in the
    first, and writes ``NAME-DTYPE.npz``: ``output:I`` and ``head:I`` (a random gradient) of each
    head I, ``grad:ARGUMENT`` (``data`` too), ``state:NAME`` after the pass, and ``label``."""
    import export.mxnet_import  # noqa: F401  (repairs NumPy for MXNet)
    import mxnet as mx  # isort: skip

    path = folder / f"{name}.json"
    data = np.load(folder / f"{name}-data.npy")
    graph = without_dropout(read_symbol(path))
    write_symbol(graph, path)
    if dtype == "float64":
        graph = without_crops(graph, *data.shape[2:])
    executed = folder / f"{name}-{dtype}.json"
    write_symbol(graph, executed)
    symbol = mx.sym.load(str(executed))
    shapes, outputs, _ = symbol.infer_shape(data=data.shape)
    random = np.random.default_rng(1)
    saved = {
        key.split(":", 1)[-1]: value.astype(dtype)
        for key, value in mx.nd.load(str(folder / f"{name}.params")).items()
    }
    written = {}
    values = {"data": mx.nd.array(data, dtype=dtype)}
    for key, shape in zip(symbol.list_arguments(), shapes, strict=True):
        if key.endswith("label"):
            labels = random.integers(0, outputs[0][1], shape)
            labels[random.random(shape) < 0.2] = IGNORED
            written["label"] = labels.astype(dtype)
            values[key] = mx.nd.array(labels, dtype=dtype)
        elif key != "data":
            values[key] = saved[key]
    states = {key: saved[key] for key in symbol.list_auxiliary_states()}
    gradients = {key: mx.nd.zeros(value.shape, dtype=dtype) for key, value in values.items()}
    executor = symbol.bind(mx.cpu(), values, gradients, "write", states)
    heads = [random.normal(size=shape) for shape in outputs]
    found = executor.forward(is_train=True)
    executor.backward([mx.nd.array(head, dtype=dtype) for head in heads])
    for index, (head, output) in enumerate(zip(heads, found, strict=True)):
        written[f"head:{index}"], written[f"output:{index}"] = head, output.asnumpy()
    for key, gradient in gradients.items():
        if not key.endswith("label"):
            written[f"grad:{key}"] = gradient.asnumpy()
    for key, state in states.items():
        written[f"state:{key}"] = state.asnumpy()
    np.savez(folder / f"{name}-{dtype}.npz", **written)
