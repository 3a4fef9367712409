"""Writes the tables of docs/peers.md, performance.md and scaling.md from ``benchmarks/results``.

``python -m benchmarks.tables`` puts each table between its markers, ``<!-- NAME -->`` and
``<!-- end -->``, and draws ``results/settings.png``: what a page says is what was measured. A table
whose file is not there stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from benchmarks.contest.page import overhead_table, peers_table
from benchmarks.machine import RESULTS, Machine, save_plot
from benchmarks.scaling_engine import read_point
from benchmarks.winograd import HEAD, read_row

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("peers.md", "performance.md", "scaling.md")
NETWORKS = {"icnet_resnet50": "ICNet-ResNet50", "pspnet_resnet50": "PSPNet-ResNet50"}
PRECISIONS = ("fp32", "int8")


class _Ratio(TypedDict):
    median: float
    low: float
    high: float
    count: int


class _Row(TypedDict):
    name: str
    ratio: _Ratio


class _Settings(TypedDict):
    network: str
    precision: str
    served_ms: _Ratio
    served_cpu_ms: _Ratio
    peak: dict[str, object]
    share: dict[str, float]
    rows: list[_Row]
    machine: dict[str, object]
    command: str


def read_settings(results: Path) -> dict[tuple[str, str], _Settings]:
    """The files of ``benchmarks.settings`` at full size, by network and precision."""
    found = {}
    for network in NETWORKS:
        for precision in PRECISIONS:
            path = results / f"settings_{network}_{precision}.json"
            if path.exists():
                found[network, precision] = json.loads(path.read_text("utf-8"))
    return found


def settings_table(results: Path) -> str:
    """A row a variant, a column a network in a precision."""
    found = read_settings(results)
    names = list(dict.fromkeys(row["name"] for told in found.values() for row in told["rows"]))
    head = [f"{NETWORKS[network]} {precision}" for network, precision in found]
    lines = [
        f"| other than what is served | {' | '.join(head)} |",
        "|---" * (1 + len(head)) + "|",
    ]
    for name in names:
        cells = []
        for told in found.values():
            ratio = {row["name"]: row["ratio"] for row in told["rows"]}.get(name)
            cells.append(
                "" if ratio is None
                else f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
            )  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_sources(list(found.values()), "settings")]) if found else ""


def peak_table(results: Path) -> str:
    """The share of the peak that each network reaches."""
    lines = [
        "| network | one image, wall | CPU | GMAC as run | GMAC/s | measured peak | share |",
        "|---|---|---|---|---|---|---|",
    ]
    found = read_settings(results)
    for (network, precision), told in found.items():
        ways = told["peak"]["ways"]
        assert isinstance(ways, dict)
        way = max(ways, key=lambda name: ways[name])
        share = told["share"]
        lines.append(
            f"| {NETWORKS[network]} {precision} | {told['served_ms']['median']:.0f} ms "
            f"| {told['served_cpu_ms']['median']:.0f} ms | {share['gmacs']} "
            f"| {share['gmacs_per_second']:.0f} | {ways[way]:.0f} ({way}) "
            f"| {100 * share['share']:.0f} % |"
        )
    return "\n".join(lines) if found else ""


def winograd_table(results: Path) -> str:
    """A row a layer."""
    path = results / "winograd.json"
    if not path.exists():
        return ""
    told = json.loads(path.read_text("utf-8"))
    rows = [read_row(row).line() for row in told["rows"]]
    return "\n".join([*HEAD, *rows, *_sources([told])])


def engine_table(results: Path) -> str:
    """A row a point of the engine's curves."""
    path = results / "scaling_engine.json"
    if not path.exists():
        return ""
    told = json.loads(path.read_text("utf-8"))
    lines = [
        "| curve | size | | classes | batch | instances x threads | run, ms | restore, ms "
        "| images/s | CPU, ms an image | memory, MiB |",
        "|---" * 11 + "|",
    ]
    for curve, points in told["curves"].items():
        lines += [read_point(json.dumps(point)).row(curve) for point in points]
    return "\n".join([*lines, *_sources([told], "scaling_engine")])


def server_table(results: Path) -> str:
    """Callers at once, then the steady load."""
    path = results / "scaling_server.json"
    if not path.exists():
        return ""
    told = json.loads(path.read_text("utf-8"))
    lines = [
        "| instances | callers | images/s | p50, ms | p99, ms | CPU s an image | memory, MiB |"
    ]
    lines.append("|---" * 7 + "|")
    for title, points in told["callers"].items():
        lines += [
            f"| {title} | {p['callers']} | {p['images_per_second']:.2f} | {p['p50_ms']:.0f} "
            f"| {p['p99_ms']:.0f} | {p['cpu_s']:.3f} | {p['memory_mib']:.0f} |"
            for p in points
        ]
    lines += ["", "| 80 % load | arrivals | offered | answered | p50, ms | p99, ms | p99 / p50 "
              "| of an ideal queue |", "|---" * 8 + "|"]  # fmt: skip
    for title, ones in told["steady"].items():
        lines += [
            f"| {title} | {one['arrivals']} | {one['offered']:.2f} | {one['answered']:.2f} "
            f"| {one['p50_ms']:.0f} | {one['p99_ms']:.0f} | {one['p99_of_p50']:.2f} "
            f"| {one['queue_p99_of_p50']:.2f} |"
            for one in ones
        ]
    return "\n".join([*lines, *_sources([told], "scaling_server")])


TABLES: dict[str, Callable[[Path], str]] = {
    "settings": settings_table,
    "peak": peak_table,
    "winograd": winograd_table,
    "scaling_engine": engine_table,
    "scaling_server": server_table,
    "peers_icnet": partial(peers_table, "icnet"),
    "peers_pspnet": partial(peers_table, "pspnet"),
    "peers_trained": partial(peers_table, "trained"),
    "overhead_icnet": partial(overhead_table, "icnet"),
}


def fill(page: str, results: Path) -> str:
    """A page with its tables made anew."""
    for name, make in TABLES.items():
        table = make(results)
        if table:
            pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
            page = re.sub(
                pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL
            )  # fmt: skip
    return page


def tables(
    results: Annotated[Path, typer.Option(help="Folder of the JSON files.")] = RESULTS,
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = DOCS,
) -> None:
    """Fills the tables and draws the bars."""
    for name in PAGES:
        path = docs / name
        path.write_text(fill(path.read_text("utf-8"), results), "utf-8")
        typer.echo(f"filled {path}")
    if read_settings(results):
        typer.echo(f"drawn {plot_settings(results)}")


def plot_settings(results: Path) -> Path:
    """Bars of the ratios, a panel a network in a precision."""
    from matplotlib.figure import Figure

    found = read_settings(results)
    longest = max(len(told["rows"]) for told in found.values())
    size = (1.0 + 4.2 * len(found), 1.4 + 0.3 * longest)
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for number, (one, ((network, precision), told)) in enumerate(
        zip(panels, found.items(), strict=True)
    ):
        rows = told["rows"][::-1]
        medians = [row["ratio"]["median"] for row in rows]
        low = [row["ratio"]["median"] - row["ratio"]["low"] for row in rows]
        high = [row["ratio"]["high"] - row["ratio"]["median"] for row in rows]
        one.barh([row["name"] for row in rows], medians, xerr=[low, high], color=f"C{number}")
        one.axvline(1, color="gray", lw=0.8)
        one.set(xlabel="time / what is served")
        one.set_title(f"{NETWORKS[network]} {precision}", fontsize=9)
        one.tick_params(axis="y", labelsize=7)
    figure.get_layout_engine().set(rect=(0, 0.04, 0.99, 0.96))  # type: ignore[union-attr]
    (told, *_) = found.values()
    return save_plot("settings", figure, Machine(**told["machine"]), results)  # type: ignore[arg-type]


def _sources(files: list[_Settings], picture: str = "") -> list[str]:
    """The picture of a table, then the commands and the machines behind it, each once."""
    head = ["", f"![{picture}](../benchmarks/results/{picture}.png)", ""] if picture else [""]
    lines = []
    for told in files:
        lines.append(f"`{told['command']}`, {Machine(**told['machine']).line()}.")  # type: ignore[arg-type]
    return [*head, *(f"{line}  " for line in dict.fromkeys(lines))]


if __name__ == "__main__":
    typer.run(tables)
