"""Measures what each rewrite of the graph, and each setting of ONNX Runtime, brings.

``python -m benchmarks.studies.settings icnet_resnet50 --precision int8``: each variant takes turns
with what is served (the default of ``serving/engines``), so ratios also hold on a busy machine.
Graphs are cut to ``logits``; the plain one ends in an argmax at full size. Weights are random.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import typer

from benchmarks.engines.graphs import built_graph, lower, network_at, parse_network, plain_model
from benchmarks.engines.onnxruntime import open_on_cpu
from benchmarks.machine import RESULTS, ResultsFolder, read_machine, write_result
from benchmarks.studies.peak import Peak, count_gmacs, measure_peak
from benchmarks.timing import Spread, ratios, time_in_turn
from export.passes.build import REWRITES, build_model
from export.precision.quantise import Recipe
from export.symbols.find import NetworkName
from serving.engines.acceleration import Acceleration
from serving.engines.graph import INPUT, LOGITS, MASK, cut_to
from serving.engines.onnxruntime import session_options
from serving.engines.winograd import apply_winograd
from serving.imaging.geometry import Size
from serving.palette import load_labels

DATASET = "citys"
PRECISIONS = ("fp32", "int8")
DEFAULTS = Acceleration()
# int8 is made of graphs whose batch norms are folded.
INT8_REWRITES = tuple(name for name in REWRITES if name != "fold_batch_norm")
PACKED = "pack_columns"
# Threads of one variant that still spin would take time from the other's turn.
PAUSE_S = 0.1
Options: TypeAlias = onnxruntime.SessionOptions
Change = Callable[[Options], None]


@dataclass(frozen=True)
class Variant:
    """One difference from what is served: another ``graph``, ``change`` or ``acceleration``."""

    name: str
    graph: str = "served"
    change: Change | None = None
    acceleration: Acceleration = DEFAULTS


@dataclass(frozen=True)
class Row:
    """The figures of a variant; ``ratio`` is its wall time over the served one's, turn by turn."""

    name: str
    ratio: Spread
    cpu_ratio: Spread
    wall_ms: Spread
    cpu_ms: Spread

    def line(self) -> str:
        """Returns a row of the table."""
        return (
            f"| {self.name} | {self.ratio.median:.2f} ({self.ratio.low:.2f}-{self.ratio.high:.2f})"
            f" | {self.cpu_ratio.median:.2f} | {self.wall_ms.median:.0f} ms"
            f" | {self.cpu_ms.median:.0f} ms |"
        )


def entry(key: str, value: str) -> Change:
    """Returns a change that sets a configuration entry of a session."""

    def change(options: Options) -> None:
        options.log_severity_level = 3  # it warns when an entry is set again
        options.add_session_config_entry(key, value)

    return change


def one_thread(options: Options) -> None:
    options.intra_op_num_threads = 1


def variants(precision: str, threads: int) -> list[Variant]:
    """Returns all variants of a precision."""
    found = [
        Variant("plain export, fp32, argmax at full size", "plain"),
        Variant("labels in the graph: resize and argmax at full size", "mask"),
    ]
    rewrites = REWRITES if precision == "fp32" else (*INT8_REWRITES, PACKED)
    found += [Variant(f"without `{name}`", f"without {name}") for name in rewrites]
    if precision == "fp32":
        found.append(
            Variant(
                "direct 3x3 convolutions (winograd: 0)", acceleration=Acceleration(winograd=False)
            )
        )
    else:
        found += [
            Variant("fp32", "fp32"),
            Variant("QDQ cleaned up", change=entry("session.enable_quant_qdq_cleanup", "1")),
            Variant(
                "no saturation (x64quantprecision)",
                change=entry("session.x64quantprecision", "1"),
            ),
        ]
    if threads > 1:
        found += [
            Variant("1 thread", change=one_thread),
            Variant("spinning off", change=entry("session.intra_op.allow_spinning", "0")),
            Variant(
                "spinning between runs too", change=entry("session.force_spinning_stop", "0")
            ),
            Variant("dynamic blocks of work", change=entry("session.dynamic_block_base", "4")),
            Variant("branches at once", acceleration=Acceleration(parallel=True,
                                                                  inter_op_threads=2)),
        ]  # fmt: skip
    found += [
        Variant("graph level extended: no NCHWc",
                acceleration=Acceleration(graph_level="extended")),
        Variant("graph level basic", acceleration=Acceleration(graph_level="basic")),
        Variant("no memory arena", acceleration=Acceleration(arena=False)),
        Variant("no memory pattern", acceleration=Acceleration(pattern=False)),
        Variant("denormals are zero", change=entry("session.set_denormal_as_zero", "1")),
        Variant("no prepacked weights", change=entry("session.disable_prepacking", "1")),
    ]  # fmt: skip
    return found


class Graphs:
    """Builds the graphs of one network when they are needed."""

    def __init__(self, network: NetworkName, size: Size, precision: str) -> None:
        self.network, self.size, self.precision = network, size, precision
        self.classes = len(load_labels(DATASET).names)

    def get(self, name: str) -> onnx.ModelProto:
        """Returns the graph ``served``, ``mask``, ``fp32``, ``plain``, or ``without PASS``."""
        height, width = self.size.height, self.size.width
        if name in ("served", "mask", "fp32"):
            precision = "fp32" if name == "fp32" else self.precision
            path = built_graph(self.network, self.classes, height, width, precision)
            return cut_to(path, onnx.load(str(path)), MASK if name == "mask" else LOGITS)
        symbol, weights = network_at(self.network, self.classes, height, width)
        if name == "plain":
            return plain_model(symbol, weights, height, width)
        rewrite = name.removeprefix("without ")
        without = () if rewrite == PACKED else (rewrite,)
        model = build_model(symbol, weights, height, width, heads=[LOGITS], without=without)
        if self.precision == "fp32":
            return model
        return lower(model, self.precision, Recipe(four_columns=rewrite != PACKED))


def open_variant(graphs: Graphs, variant: Variant, threads: int) -> Callable[[], object]:
    """Returns a run of a variant on noise."""
    options = session_options(variant.acceleration, 1, threads)
    if variant.change is not None:
        variant.change(options)
    model = graphs.get(variant.graph)
    factors: Mapping[str, npt.NDArray[np.float32]] = {}
    if variant.acceleration.winograd and variant.graph != "plain":
        rewritten = apply_winograd(model)
        model, factors = rewritten.model, rewritten.factors
    session = open_on_cpu(model, threads, options)
    del model
    shape = (1, graphs.size.height, graphs.size.width, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: session.run(None, {INPUT: image, **factors})


def compare(graphs: Graphs, chosen: list[Variant], threads: int, turns: int) -> list[Row]:
    """Measures each variant in turn with what is served, and prints its row."""
    served = open_variant(graphs, Variant("served"), threads)
    rows = []
    for variant in chosen:
        pair = (open_variant(graphs, variant, threads), served)
        own, base = time_in_turn(pair, 0.0, turns, PAUSE_S)
        row = Row(
            variant.name,
            ratios(own.walls, base.walls),
            ratios(own.cpus, base.cpus),
            own.wall_spread,
            own.cpu_spread,
        )
        typer.echo(row.line())
        rows.append(row)
    return rows


def main(
    network: Annotated[str, typer.Argument(help="Network as NETWORK_BACKBONE.")] = "icnet_resnet50",
    precision: Annotated[str, typer.Option(help="fp32 or int8.")] = "fp32",
    size: Annotated[str, typer.Option(help="Image size, HEIGHTxWIDTH.")] = "1024x2048",
    only: Annotated[
        str,
        typer.Option(
            help="Measure only variants whose names contain one of these, comma-separated."
        ),
    ] = "",
    turns: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 uses all cores.")] = 0,
    results: ResultsFolder = RESULTS,
) -> None:
    """Prints a row for each variant, then the share of the machine's peak."""
    if precision not in PRECISIONS:
        raise typer.BadParameter(
            f"--precision {precision!r} is not valid: expected {' or '.join(PRECISIONS)}"
        )
    machine = read_machine()
    cores = threads or len(os.sched_getaffinity(0))
    graphs = Graphs(parse_network(network, DATASET), Size.parse(size), precision)
    parts = [part.strip() for part in only.split(",") if part.strip()]
    chosen = [
        variant
        for variant in variants(precision, cores)
        if not parts or any(part in variant.name for part in parts)
    ]
    peak = measure_peak(precision, cores)
    typer.echo("| other than what is served | time / served | CPU / served | wall | CPU |")
    typer.echo("|---|---|---|---|---|")
    (own,) = time_in_turn((open_variant(graphs, Variant("served"), cores),), 0.0, turns)
    wall = own.wall_spread
    rows = compare(graphs, chosen, cores, turns)
    share = _share(graphs, wall, peak)
    typer.echo(
        f"served: {wall} ms, {own.cpu_ms():.0f} ms of CPU; {share['gmacs']} GMAC an image, "
        f"{share['gmacs_per_second']} GMAC/s of {peak.gmacs:.0f}: {100 * share['share']:.0f} %"
    )
    write_result(
        f"settings_{network}_{precision}" + ("" if size == "1024x2048" else f"_{size}"),
        {
            "network": network, "precision": precision, "size": size, "threads": cores,
            "served_ms": wall, "served_cpu_ms": own.cpu_spread,
            "peak": peak, "share": share, "rows": rows,
        },
        machine,
        results,
    )  # fmt: skip


def _share(graphs: Graphs, wall: Spread, peak: Peak) -> dict[str, float]:
    """Returns what the served network multiplies, and the share of the peak that this is."""
    model = graphs.get("fp32")
    gmacs = count_gmacs(apply_winograd(model).model if graphs.precision == "fp32" else model)
    speed = gmacs / wall.median * 1000
    return {
        "gmacs": round(gmacs, 1),
        "gmacs_per_second": round(speed, 1),
        "share": round(speed / peak.gmacs, 3),
    }


if __name__ == "__main__":
    typer.run(main)
