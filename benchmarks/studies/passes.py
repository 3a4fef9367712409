"""Measures what a graph rewrite brings: the same network with and without it, in turn.

``python -m benchmarks.studies.passes [--rewrite NAME] [--seconds N] [--update]``. CPU time of one
thread on ONNX Runtime: medians, and the quartiles of the ratio of each turn. ``--update`` puts the
rows into docs/export.md. Weights are random, the image is a rendered street.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import read_machine
from benchmarks.studies.parity import CLASSES, NETWORKS
from benchmarks.studies.rewrites import ADAPTIVE, Subject, Values, make_pair
from benchmarks.timing import ratios, time_in_turn
from export.symbols.find import PUBLISHED, trace_symbol
from export.symbols.graph import Graph, read_symbol
from export.symbols.params import random_params
from export.symbols.sizes import retarget
from training.datasets.synthetic import render_scene

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BEGIN, END = "<!-- passes -->", "<!-- end -->"
SMALL, LARGE = (352, 480), (1024, 2048)


@dataclass(frozen=True)
class Comparison:
    """A rewrite, and the network to measure it on: one of ``parity``, or a published one.

    ``off`` are the rewrites to leave out on both sides, which would do part of its work.
    """

    rewrite: str
    network: str
    size: tuple[int, int] = SMALL
    off: tuple[str, ...] = ()


COMPARISONS = (
    Comparison("prune_heads", "pspnet_resnet50_aux"),
    Comparison("prune_heads", "icnet_resnet50_citys", LARGE),
    Comparison("cut_at_logits", "icnet_resnet50_citys", LARGE),
    Comparison("cut_at_logits", "icnet_resnet18_0.5"),
    Comparison("mask_head", "icnet_resnet50_citys", LARGE),
    Comparison("mask_head", "icnet_resnet18_0.5"),
    Comparison("sample_deformable", "deeplab_msra_dcn_resnet101"),
    Comparison("fold_batch_norm", "fcn_resnet50"),
    Comparison("image_pooling_bias", "deeplabv3_resnet50", off=("factor_pyramid",)),
    Comparison("image_pooling_bias", "deeplabv3plus_xception65_os16", off=("factor_pyramid",)),
    Comparison("factor_pyramid", "icnet_resnet50"),
    Comparison("factor_pyramid", "pspnet_resnet50"),
    Comparison("commute_resize", "icnet_resnet50_citys"),
    Comparison("fold_normalisation", "icnet_resnet50_citys"),
    Comparison(ADAPTIVE, "icnet_resnet50_citys"),
    Comparison(ADAPTIVE, "pspnet_resnet50"),
)


def measure(comparison: Comparison, seconds: float) -> str:
    """Measures a comparison, and returns its line of the table in docs/export.md."""
    size = comparison.size
    graph = _graph(comparison)
    image = render_scene(0, *size).image
    parameters = random_params(graph, *size, neutral=False)
    pair = make_pair(comparison.rewrite, Subject(graph, parameters, size, image, comparison.off))
    difference = _difference(pair.without(), pair.with_it())
    without, with_it = time_in_turn([pair.without, pair.with_it], seconds)
    ratio = ratios(with_it.cpus, without.cpus)
    return (
        f"{_key(comparison)} {without.cpu_ms():.0f} ms | {with_it.cpu_ms():.0f} ms |"
        f" {ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f}), {ratio.count} | {difference} |"
    )


def _graph(comparison: Comparison) -> Graph:
    published = PUBLISHED / f"{comparison.network}.json.gz"
    if published.is_file():
        return retarget(read_symbol(published), *comparison.size)
    return trace_symbol(NETWORKS[comparison.network], CLASSES, comparison.size).graph


def _difference(without: Values, with_it: Values) -> str:
    """Returns the largest difference of logits, relative to the largest, or of labels the share."""
    if with_it.dtype == np.uint8:
        share = float((without != with_it).mean())
        return f"{share:.0e} of the labels" if share else "no label"
    expected, found = without.astype(np.float64), with_it.astype(np.float64)
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.0e}"


def _key(comparison: Comparison) -> str:
    height, width = comparison.size
    return f"| `{comparison.rewrite}` | {comparison.network} | {height}x{width} |"


def put_row(page: Path, row: str) -> None:
    """Replaces the page's row of the same rewrite, network and size, or adds it in its place."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    header = [line for line in table.strip().splitlines() if not line.startswith("| `")]
    kept = [line for line in table.strip().splitlines() if line.startswith("| `")]
    keys = [_key(comparison) for comparison in COMPARISONS]
    rows = {key: line for key in keys for line in (*kept, row) if line.startswith(key)}
    lines = "\n".join([*header, *(rows[key] for key in keys if key in rows)])
    page.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", "utf-8")


def main() -> None:
    """Prints a line for each comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.passes")
    parser.add_argument("--rewrite", nargs="+", help="measure only these rewrites")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="approximate seconds of each comparison"
    )
    parser.add_argument("--update", action="store_true", help=f"write the rows into {PAGE.name}")
    options = parser.parse_args()
    print(read_machine().line(), flush=True)
    for comparison in COMPARISONS:
        if options.rewrite is None or comparison.rewrite in options.rewrite:
            row = measure(comparison, options.seconds)
            print(row, flush=True)
            if options.update:
                put_row(PAGE, row)


if __name__ == "__main__":
    main()
