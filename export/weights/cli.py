"""``segserve import-weights``: weights from elsewhere into this project's files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.errors import ExportError, WeightsError
from export.options import parse_size
from export.progress import show_bytes
from export.symbols.networks import pixels_of
from export.weights.files import stored_file
from export.weights.importing import SOURCES, import_weights
from export.weights.zoo import obtain_network

_FROM = "; ".join(f"{name}: {source.about}" for name, source in SOURCES.items())


def import_weights_command(
    weights: Annotated[
        str,
        typer.Argument(
            help="A file, or with --from gluoncv a name of GluonCV's zoo (icnet_resnet50_citys).",
            show_default=False,
        ),
    ],
    source: Annotated[str, typer.Option("--from", help=_FROM)],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH", help="Image size of the symbol. Default: the source's own."
        ),
    ] = None,
    output_stride: Annotated[
        int, typer.Option(help="Output stride of deeplabv3plus: 8 or 16.")
    ] = 16,
    dataset: Annotated[
        str | None, typer.Option(help="Dataset that the weights were trained on: citys, ...")
    ] = None,
) -> None:
    """Writes network-symbol.json, network.params and weights.json; pickles are not executed.

    segserve import-weights icnet_final.pth --from fast_seg --out runs/fast_seg

    segserve import-weights model.ckpt --from tf_deeplab --size 513x513 --out runs/deeplab
    """
    console = Console(stderr=True, highlight=False)
    try:
        wanted = parse_size(size)
        path = Path(weights)
        exists = path.exists() or stored_file(path).exists()
        if source == "gluoncv" and not exists and path.name == weights and not path.suffix:
            with show_bytes(console, weights) as on_bytes:
                imported = obtain_network(weights, out, wanted, on_bytes)
        else:
            imported = import_weights(path, source, out, wanted, output_stride, dataset)
    except (WeightsError, ExportError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    console.print(
        f"sees {pixels_of(imported.model, imported.backbone)}; try:\n"
        f"segserve export {' '.join(imported.flags())} --params {imported.params} "
        f"--size {imported.size[0]}x{imported.size[1]}"
        + ("" if imported.dataset else " --dataset ..."),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    typer.echo(
        f"{imported.params}: {imported.model} {imported.backbone}, {imported.classes} classes"
    )
