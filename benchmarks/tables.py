"""Writes the tables of docs/peers.md, performance.md and scaling.md from ``benchmarks/results``.

``python -m benchmarks.tables`` puts each table between its markers, ``<!-- NAME -->`` and
``<!-- end -->``, and draws ``results/settings.png``, so a page shows what was measured. A table
whose file is missing is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from benchmarks.contest.contestants import OWN
from benchmarks.contest.summary import Summary, read_results, summarise
from benchmarks.machine import RESULTS, Machine, ResultsFolder, above_footer, save_plot
from benchmarks.studies import winograd
from benchmarks.studies.scaling_engine import read_point
from benchmarks.timing import Spread

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("peers.md", "performance.md", "scaling.md")
NETWORKS = {"icnet_resnet50": "ICNet-ResNet50", "pspnet_resnet50": "PSPNet-ResNet50"}
PRECISIONS = ("fp32", "int8")
# A file of results, as write_result wrote it.
Stored: TypeAlias = Mapping[str, Any]


def read_settings(results: Path) -> dict[tuple[str, str], Stored]:
    """Returns the files of ``benchmarks.studies.settings`` at full size, by network, precision."""
    found = {}
    for network in NETWORKS:
        for precision in PRECISIONS:
            stored = _read(results, f"settings_{network}_{precision}")
            if stored is not None:
                found[network, precision] = stored
    return found


def settings_table(results: Path) -> str:
    """Returns a row for each variant, a column for each network in a precision."""
    found = read_settings(results)
    ratios = [{row["name"]: row["ratio"] for row in stored["rows"]} for stored in found.values()]
    head = [f"{NETWORKS[network]} {precision}" for network, precision in found]
    lines = _head("other than what is served", *head)
    for name in dict.fromkeys(name for column in ratios for name in column):
        cells = [
            "{median:.2f} ({low:.2f}-{high:.2f})".format(**column[name]) if name in column else ""
            for column in ratios
        ]
        lines.append(_line(name, *cells))
    return "\n".join([*lines, *_sources(found.values(), "settings")]) if found else ""


def peak_table(results: Path) -> str:
    """Returns the share of the peak that each network reaches."""
    lines = _head(
        "network", "one image, wall", "CPU", "GMAC as run", "GMAC/s", "measured peak", "share"
    )
    found = read_settings(results)
    for (network, precision), stored in found.items():
        ways: dict[str, float] = stored["peak"]["ways"]
        way = max(ways, key=lambda name: ways[name])
        share = stored["share"]
        lines.append(
            _line(
                f"{NETWORKS[network]} {precision}",
                f"{stored['served_ms']['median']:.0f} ms",
                f"{stored['served_cpu_ms']['median']:.0f} ms",
                f"{share['gmacs']}",
                f"{share['gmacs_per_second']:.0f}",
                f"{ways[way]:.0f} ({way})",
                f"{100 * share['share']:.0f} %",
            )
        )
    return "\n".join(lines) if found else ""


def winograd_table(results: Path) -> str:
    """Returns a row for each layer."""
    stored = _read(results, "winograd")
    if stored is None:
        return ""
    rows = [winograd.read_row(row).line() for row in stored["rows"]]
    return "\n".join([*winograd.HEAD, *rows, *_sources([stored])])


def engine_table(results: Path) -> str:
    """Returns a row for each point of the engine's curves."""
    stored = _read(results, "scaling_engine")
    if stored is None:
        return ""
    lines = _head(
        "curve", "size", "", "classes", "batch", "instances x threads", "run, ms", "restore, ms",
        "images/s", "CPU, ms an image", "memory, MiB",
    )  # fmt: skip
    for curve, points in stored["curves"].items():
        lines += [read_point(point).row(curve) for point in points]
    return "\n".join([*lines, *_sources([stored], "scaling_engine")])


def server_table(results: Path) -> str:
    """Returns the rows of concurrent callers, then those of the steady load."""
    stored = _read(results, "scaling_server")
    if stored is None:
        return ""
    lines = _head(
        "instances", "callers", "images/s", "p50, ms", "p99, ms", "CPU s an image", "memory, MiB"
    )
    for title, points in stored["callers"].items():
        lines += [
            f"| {title} | {p['callers']} | {p['images_per_second']:.2f} | {p['p50_ms']:.0f} "
            f"| {p['p99_ms']:.0f} | {p['cpu_s']:.3f} | {p['memory_mib']:.0f} |"
            for p in points
        ]
    lines += ["", *_head("80 % load", "arrivals", "offered", "answered", "p50, ms", "p99, ms",
                         "p99 / p50", "of an ideal queue")]  # fmt: skip
    for title, loads in stored["steady"].items():
        lines += [
            f"| {title} | {load['arrivals']} | {load['offered']:.2f} | {load['answered']:.2f} "
            f"| {load['p50_ms']:.0f} | {load['p99_ms']:.0f} | {load['p99_of_p50']:.2f} "
            f"| {load['queue_p99_of_p50']:.2f} |"
            for load in loads
        ]
    return "\n".join([*lines, *_sources([stored], "scaling_server")])


def peers_table(name: str, results: Path) -> str:
    """Returns a row for each server under each load."""
    kept = read_results(results / f"peers_{name}.json")
    if not kept.rows:
        return ""
    lines = _head(
        "load", "server", "rounds", "images/s", "of Triton's", "p50, s", "p95, s", "p99, s",
        "CPU s an image, server + caller", "memory, MiB",
    )  # fmt: skip
    lines += [_peer(summary) for summary in summarise(kept.rows)]
    sources = _sources(kept.runs, f"peers_{name}", "Server by server")
    return "\n".join([*lines, *sources])


def _peer(summary: Summary) -> str:
    # An open loop is answered as fast as it sends: its ratio would say nothing.
    ratio = "" if summary.load == "open" else _ratio(summary)
    times = (summary.p50_ms / 1000, summary.p95_ms / 1000, summary.p99_ms / 1000)
    return _line(
        summary.load,
        summary.title,
        f"{summary.throughput.count}",
        f"{summary.throughput.median:.3g}",
        ratio,
        *map(_digits, times),
        f"{_digits(summary.server_cpu_s)} + {summary.client_cpu_s:.3f}",
        f"{summary.peak_rss_mib:.0f}",
    )


def _ratio(summary: Summary) -> str:
    if summary.ratio is None:
        return ""
    median = f"{summary.ratio.median:.2f}"
    if summary.contestant in OWN:
        median = f"**{median}**"
    if summary.ratio.count == 1 or summary.ratio.low == summary.ratio.high:
        return median
    return f"{median} ({summary.ratio.low:.2f} to {summary.ratio.high:.2f})"


def _digits(value: float) -> str:
    """Returns two decimals, or three where these would be one digit."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def overhead_table(name: str, results: Path) -> str:
    """Returns a row for each figure, a column for each precision; "" where a file is missing."""
    precisions = PRECISIONS[::-1]
    files = [_read(results, f"overhead_{name}_{precision}") for precision in precisions]
    found = [stored for stored in files if stored is not None]
    if len(found) < len(files):
        return ""

    def cells(part: str, key: str) -> list[str]:
        return [str(Spread(**stored[part][key])) for stored in found]

    shares = [Spread(**stored["saturated"]["share"]) for stored in found]
    rows = [
        ("bare engine, images/s", cells("saturated", "bare")),
        ("served, saturated, images/s", cells("saturated", "served")),
        ("share of the engine", [
            f"**{100 * share.median:.1f} %** ({100 * share.low:.1f}-{100 * share.high:.1f})"
            for share in shares
        ]),
        ("CPU seconds an image, bare", cells("saturated", "bare_cpu_s")),
        ("CPU seconds an image, served", cells("saturated", "served_cpu_s")),
        ("one caller: engine, ms", cells("alone_ms", "engine")),
        ("one caller: restore, ms", cells("alone_ms", "restore")),
        ("one caller: request, ms", cells("alone_ms", "request")),
        ("one caller: beyond engine and restore, ms", cells("alone_ms", "beyond")),
    ]  # fmt: skip
    lines = [*_head("", *precisions), *(_line(title, *row) for title, row in rows)]
    return "\n".join([*lines, *_sources(found)])


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
    """Returns a page with its tables made again."""
    for name, make in TABLES.items():
        table = make(results)
        if table:
            begin, end = f"<!-- {name} -->\n", "<!-- end -->"
            before, marked, rest = page.partition(begin)
            if marked:
                page = f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return page


def tables(
    results: ResultsFolder = RESULTS,
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = DOCS,
) -> None:
    """Fills the tables of the docs and draws the bars of the settings."""
    for name in PAGES:
        path = docs / name
        path.write_text(fill(path.read_text("utf-8"), results), "utf-8")
        typer.echo(f"filled {path}")
    if read_settings(results):
        typer.echo(f"drawn {plot_settings(results)}")


def plot_settings(results: Path) -> Path:
    """Draws the ratios as bars, a panel for each network in a precision; returns the file."""
    from matplotlib.figure import Figure

    found = read_settings(results)
    longest = max(len(stored["rows"]) for stored in found.values())
    size = (1.0 + 4.2 * len(found), 1.4 + 0.3 * longest)
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for number, (panel, ((network, precision), stored)) in enumerate(
        zip(panels, found.items(), strict=True)
    ):
        rows = stored["rows"][::-1]
        medians = [row["ratio"]["median"] for row in rows]
        low = [row["ratio"]["median"] - row["ratio"]["low"] for row in rows]
        high = [row["ratio"]["high"] - row["ratio"]["median"] for row in rows]
        panel.barh([row["name"] for row in rows], medians, xerr=[low, high], color=f"C{number}")
        panel.axvline(1, color="gray", lw=0.8)
        panel.set(xlabel="time / what is served")
        panel.set_title(f"{NETWORKS[network]} {precision}", fontsize=9)
        panel.tick_params(axis="y", labelsize=7)
    above_footer(figure, 0.04, right=0.99)
    (stored, *_) = found.values()
    return save_plot("settings", figure, Machine(**stored["machine"]), results)


def _read(results: Path, name: str) -> Stored | None:
    path = results / f"{name}.json"
    if not path.exists():
        return None
    stored: Stored = json.loads(path.read_text("utf-8"))
    return stored


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*titles: str) -> list[str]:
    return [_line(*titles).replace("|  |", "| |"), "|---" * len(titles) + "|"]


def _sources(files: Iterable[Stored], picture: str = "", title: str = "") -> Sequence[str]:
    """Returns a table's picture, then the commands and machines behind it, each once."""
    head = [""]
    if picture:
        head += [f"![{title or picture}](../benchmarks/results/{picture}.png)", ""]
    lines = [f"`{stored['command']}`, {Machine(**stored['machine']).line()}." for stored in files]
    return [*head, *(f"{line}  " for line in dict.fromkeys(lines))]


if __name__ == "__main__":
    typer.run(tables)
