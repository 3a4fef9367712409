"""What a graph rewrite brings: the same network with and without it, in turn, on ONNX Runtime.

``python -m benchmarks.passes [--size HEIGHTxWIDTH] [--runs N]``. CPU seconds of one thread, so that
other work on the machine disturbs little; the least of the runs counts. Graphs are cut to
``logits``, as the embedded engine does.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime

from benchmarks.parity import NETWORKS, generate, parse_size
from export.build import build_model
from export.random_params import random_params
from export.retarget import retarget
from export.symbol import Graph, read_symbol
from export.symbol_lookup import PUBLISHED


@dataclass(frozen=True)
class Comparison:
    """A rewrite, and the network to measure it on: of ``benchmarks.parity``, or published.

    ``off`` are the rewrites to leave out on both sides, which would do part of its work.
    """

    rewrite: str
    network: str
    off: tuple[str, ...] = ()


COMPARISONS = (
    Comparison("fold_batch_norm", "fcn_resnet50"),
    Comparison("image_pooling_bias", "deeplabv3_resnet50", ("factor_pyramid",)),
    Comparison("image_pooling_bias", "deeplabv3plus_xception65_os16", ("factor_pyramid",)),
    Comparison("factor_pyramid", "icnet_resnet50"),
    Comparison("factor_pyramid", "pspnet_resnet50"),
    Comparison("commute_resize", "icnet_resnet50_citys"),
)


def session(
    graph: Graph, size: tuple[int, int], without: tuple[str, ...]
) -> onnxruntime.InferenceSession:
    """The network with random weights on one thread."""
    model = build_model(
        graph, random_params(graph, *size), *size, heads=["logits"], without=without
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure(comparison: Comparison, size: tuple[int, int], runs: int) -> str:
    """One line of the table in docs/export.md."""
    published = PUBLISHED / f"{comparison.network}.json.gz"
    if published.is_file():
        graph = retarget(read_symbol(published), *size)
    else:
        graph = generate(NETWORKS[comparison.network], *size)
    off = comparison.off
    sessions = [session(graph, size, without) for without in (off, (*off, comparison.rewrite))]
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    seconds: list[list[float]] = [[], []]
    results = [s.run(None, {"image": image})[0] for s in sessions]
    for _ in range(runs):
        for number, one in enumerate(sessions):
            start = time.process_time()
            one.run(None, {"image": image})
            seconds[number].append(time.process_time() - start)
    with_it, without_it = (min(times) for times in seconds)
    difference = np.abs(results[0] - results[1]).max() / np.abs(results[1]).max()
    return (
        f"| `{comparison.rewrite}` | {comparison.network} | {size[0]}x{size[1]} |"
        f" {without_it * 1000:.0f} ms | {with_it * 1000:.0f} ms | {with_it / without_it:.2f} |"
        f" {difference:.0e} |"
    )


def main() -> None:
    """Prints a line a comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes")
    parser.add_argument("--size", type=parse_size, default=(352, 480), metavar="HEIGHTxWIDTH")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for comparison in COMPARISONS:
        print(measure(comparison, options.size, options.runs), flush=True)


if __name__ == "__main__":
    main()
