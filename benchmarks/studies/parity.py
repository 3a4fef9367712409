"""Compares every network on ONNX Runtime with MXNet's forward pass: docs/parity.md.

``python -m benchmarks.studies.parity [--network NAME ...] [--size HEIGHTxWIDTH ...]``. Weights are
random and batch-norm statistics not neutral. Rows of other networks and sizes stay as they are.
Needs the extra ``training``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from export.errors import ExportError, TracingFailed
from export.passes.build import build_model
from export.symbols.find import NetworkSpec, trace_symbol
from export.symbols.graph import Graph
from export.symbols.params import random_params
from export.verify import Verification, verify
from serving.imaging.geometry import Size

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
CLASSES = 19
SIZES = ((1024, 2048), (768, 768), (352, 480), (712, 1000))
BEGIN, END = "<!-- measured -->", "<!-- end -->"
HEADER = (
    "| network | size | largest difference, relative | equal labels | classes seen |\n"
    "|---|---|---|---|---|"
)


NETWORKS = {
    "icnet_resnet18_0.5": NetworkSpec("icnet", "resnet18", 0.5),
    "icnet_resnet18": NetworkSpec("icnet", "resnet18"),
    "icnet_resnet50": NetworkSpec("icnet", "resnet50"),
    "icnet_resnet101": NetworkSpec("icnet", "resnet101"),
    "icnet_fast_seg_resnet50": NetworkSpec("icnet_fast_seg", "resnet50"),
    "icnet_two_pass_resnet50": NetworkSpec("icnet_two_pass", "resnet50"),
    "icnet_paper_resnet50": NetworkSpec("icnet_paper", "resnet50"),
    "pspnet_resnet50": NetworkSpec("pspnet", "resnet50"),
    "pspnet_resnet50_aux": NetworkSpec("pspnet", "resnet50", aux=True),
    "pspnet_resnet101": NetworkSpec("pspnet", "resnet101"),
    "pspnet_resnet101_aux": NetworkSpec("pspnet", "resnet101", aux=True),
    "fcn_resnet50": NetworkSpec("fcn", "resnet50"),
    "deeplabv2_resnet101": NetworkSpec("deeplabv2", "resnet101"),
    "deeplabv3_resnet50": NetworkSpec("deeplabv3", "resnet50"),
    "deeplabv3_resnet101": NetworkSpec("deeplabv3", "resnet101"),
    "deeplabv3plus_resnet50": NetworkSpec("deeplabv3plus", "resnet50"),
    "deeplabv3plus_xception65_os16": NetworkSpec("deeplabv3plus", "xception65"),
    "deeplabv3plus_xception65_os8": NetworkSpec("deeplabv3plus", "xception65", output_stride=8),
    "deeplab_msra_resnet101": NetworkSpec("deeplab_msra", "resnet101"),
    "deeplab_msra_dcn_resnet101": NetworkSpec("deeplab_msra_dcn", "resnet101"),
}


def compare(graph: Graph, height: int, width: int, seed: int = 0) -> Verification:
    """Builds the serving graph with random weights and statistics, and compares it with MXNet.

    Raises ExportError where they disagree.
    """
    parameters = random_params(graph, height, width, seed, neutral=False)
    return verify(build_model(graph, parameters, height, width), graph, parameters, height, width)


def row(name: str, height: int, width: int) -> str:
    """Measures a network at one size, and returns its line of the table."""
    start = f"| {name} | {height}x{width} |"
    try:
        graph = trace_symbol(NETWORKS[name], CLASSES, (height, width)).graph
        found = compare(graph, height, width)
    except TracingFailed as refused:
        return f"{start} refused: {str(refused).rpartition('; ')[2]} | | |"
    except ExportError as error:
        return f"{start} failed: {str(error).splitlines()[0]} | | |"
    beyond = "" if found.within_bounds else " (beyond the bounds)"
    return f"{start} {found.relative:.1e} | {found.agreement:.4%}{beyond} | {found.classes_seen} |"


def read_rows(page: Path) -> dict[tuple[str, str], str]:
    """Returns the table's lines by network and size; none where the page is new."""
    rows = {}
    text = page.read_text() if page.is_file() else ""
    for line in text.partition(BEGIN)[2].partition(END)[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1] in NETWORKS:
            rows[cells[1], cells[2]] = line
    return rows


def write_rows(page: Path, rows: dict[tuple[str, str], str]) -> None:
    """Puts the table between the page's two markers, networks and sizes in their order."""
    names, sizes = list(NETWORKS), [f"{h}x{w}" for h, w in SIZES]
    ordered = sorted(
        rows,
        key=lambda key: (
            names.index(key[0]),
            sizes.index(key[1]) if key[1] in sizes else len(sizes),
            key[1],
        ),
    )
    table = "\n".join([HEADER, *(rows[key] for key in ordered)])
    text = page.read_text() if page.is_file() else f"# Parity\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def parse_size(text: str) -> tuple[int, int]:
    """Parses ``352x480`` to (352, 480), for argparse."""
    try:
        size = Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return size.height, size.width


def main() -> None:
    """Measures the named networks and sizes, or all, and updates the page after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.parity")
    parser.add_argument(
        "--network", nargs="+", choices=NETWORKS, metavar="NAME", default=list(NETWORKS),
        help=f"networks to measure, of {', '.join(NETWORKS)}",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs="+", type=parse_size, default=SIZES, metavar="HxW", help="sizes to measure"
    )
    parser.add_argument("--output", type=Path, default=PAGE, help="page to update")
    options = parser.parse_args()
    rows = read_rows(options.output)
    for height, width in options.size:
        for name in options.network:
            line = row(name, height, width)
            print(line, flush=True)
            rows[name, f"{height}x{width}"] = line
            write_rows(options.output, rows)


if __name__ == "__main__":
    main()
