"""MXNet's gradients of every network: ``network_gradients.py FOLDER CASES``.

``CASES`` is JSON, by name: model, backbone, width, aux, output stride, height, width in pixels,
classes, batch. Writes what ``mxnet_gradients.write_gradients`` does, in float64 and float32, and as
``NAME_frozen`` in float32 with batch norms that keep their statistics.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from export.symbols.graph import BATCH_NORMS, Graph, read_symbol
from export.symbols.graph import write_symbol as write_graph
from export.symbols.params import random_params, write_params
from tests.support.mxnet_gradients import write_gradients
from training.networks import build
from training.networks.tracing import write_symbol


def main(folder: Path, cases: str) -> None:
    for name, case in json.loads(cases).items():
        size = case["rows"], case["columns"]
        network = build(
            case["model"], case["backbone"], case["classes"], *size,
            channel_multiplier=case["width"], aux=case["aux"], output_stride=case["output_stride"],
        )  # fmt: skip
        write_symbol(network, folder / f"{name}.json", *size)
        graph = read_symbol(folder / f"{name}.json")
        write_graph(freeze_statistics(graph), folder / f"{name}_frozen.json")
        parameters = random_params(graph, *size, seed=2, neutral=False)
        data = np.random.default_rng(4).standard_normal((case["batch"], 3, *size))
        for written in (name, f"{name}_frozen"):
            write_params(parameters, folder / f"{written}.params")
            np.save(folder / f"{written}-data.npy", data)
        write_gradients(name, folder, "float64")
        write_gradients(name, folder, "float32")
        write_gradients(f"{name}_frozen", folder, "float32")


def freeze_statistics(graph: Graph) -> Graph:
    return replace(
        graph,
        nodes=tuple(
            replace(node, attrs={**node.attrs, "use_global_stats": "True"})
            if node.op in BATCH_NORMS
            else node
            for node in graph.nodes
        ),
    )


if __name__ == "__main__":
    # Its own kernels are those that know float64.
    os.environ["MXNET_MKLDNN_ENABLED"] = "0"
    main(Path(sys.argv[1]), sys.argv[2])
