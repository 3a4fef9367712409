"""Gluon networks as files: the hybridized symbol, and parameters under the symbol's names.

``python -m training.networks.tracing --model icnet --backbone resnet50 --num-classes 19
--size 1024x2048 --output DIR`` writes ``DIR/network-symbol.json`` for any legal size. With
``--params FILE``, a file of ``save_parameters`` (structural names, GluonCV's checkpoints), it also
writes ``DIR/network.params``; with ``--names`` ``DIR/network-names.json``, the symbol's name of
every structural one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.mxnet_import import mx, mxnet_reason
from export.symbols.find import NAMES_FILE
from export.symbols.graph import SYMBOL_FILE
from export.symbols.networks import NETWORKS
from export.symbols.params import misfits, refuse_misfits
from training.flags import parse_size
from training.networks import Network, build
from training.runs.checkpoint import replacing

AUXILIARY = ("running_mean", "running_var", "moving_mean", "moving_var")


def trace(network: Network) -> mx.sym.Symbol:
    """Returns the graph of all outputs, the full-size one first; nothing is computed for it."""
    full_output = network.full_output
    network.full_output = True
    # A name manager of its own: operators are numbered from 0 whatever was traced before.
    with mx.name.NameManager():
        outputs = network(mx.sym.var("data"))
    network.full_output = full_output
    return mx.sym.Group(list(outputs))


def write_symbol(network: Network, path: Path, height: int, width: int) -> None:
    """Saves the graph with all its outputs; the network stays as it was.

    ``height`` and ``width`` are those that the network was built for. Raises ValueError where its
    layers do not fit each other at that size.
    """
    symbol = trace(network)
    try:
        symbol.infer_shape(data=(1, 3, height, width))
    except mx.MXNetError as error:
        reason = mxnet_reason(error)
        raise ValueError(f"the network does not take {height}x{width}: {reason}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(symbol.tojson())


def write_names(network: mx.gluon.HybridBlock, path: Path) -> None:
    """Saves the symbol's name of every parameter by its structural one (``save_parameters``)."""
    names = {n: p.name for n, p in network._collect_params_with_prefix().items()}
    path.write_text(json.dumps(names))


def write_parameters(network: mx.gluon.HybridBlock, path: Path) -> None:
    """Saves all parameters as ``arg:NAME`` and ``aux:NAME``; replaces the file whole."""
    arrays = {}
    for name, parameter in network.collect_params().items():
        kind = "aux" if name.endswith(AUXILIARY) else "arg"
        arrays[f"{kind}:{name}"] = parameter.data(parameter.list_ctx()[0]).as_in_context(mx.cpu())
    with replacing(path) as aside:
        mx.nd.save(str(aside), arrays)


def read_parameters(
    network: mx.gluon.HybridBlock,
    path: Path,
    contexts: list[mx.context.Context],
    partial: bool = False,
) -> tuple[str, ...]:
    """Loads a file of ``write_parameters``; ``partial`` only what fits, returning what does not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a parameter is missing, unknown, or of another shape; they are named. With
            ``partial``: none fits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no parameters at {path}")
    arrays = {name.split(":", 1)[-1]: array for name, array in mx.nd.load(str(path)).items()}
    parameters = network.collect_params()
    problems = misfits({name: tuple(p.shape) for name, p in parameters.items()}, arrays)
    missing = tuple(problems)
    if not partial:
        problems |= {n: f"{n} is unknown" for n in arrays if n not in parameters}
    refuse_misfits(problems, len(parameters.keys()), path, partial)
    for name, array in arrays.items():
        if name in parameters and name not in problems:
            parameters[name].set_data(array.as_in_context(contexts[0]))
    return missing


def main() -> None:
    """Writes the symbol of a network; with ``--params`` its parameters under the symbol's names."""
    p = argparse.ArgumentParser("python -m training.networks.tracing")
    p.add_argument("--model", default="icnet", help=f"of {', '.join(NETWORKS)}")
    p.add_argument(
        "--backbone", help="default resnet50, resnet101 (Caffe's DeepLabs) or xception65"
    )
    p.add_argument("--width", type=float, default=1.0, help="channel multiplier")
    p.add_argument("--num-classes", type=int, required=True)
    p.add_argument("--size", type=parse_size, required=True, metavar="HEIGHTxWIDTH")
    p.add_argument("--aux", action="store_true", help="with the auxiliary head")
    p.add_argument("--output-stride", type=int, default=16, help="8 or 16 (deeplabv3plus)")
    p.add_argument("--params", type=Path, help="a save_parameters() file to rename")
    p.add_argument("--names", action="store_true", help="write the structural names too")
    p.add_argument("--output", type=Path, required=True)
    a = p.parse_args()
    height, width = a.size
    try:
        network = build(
            a.model,
            a.backbone,
            a.num_classes,
            height,
            width,
            channel_multiplier=a.width,
            aux=a.aux,
            output_stride=a.output_stride,
        )
        write_symbol(network, a.output / SYMBOL_FILE, height, width)
        if a.names:
            write_names(network, a.output / NAMES_FILE)
        if a.params is not None:
            network.load_parameters(str(a.params))
            write_parameters(network, a.output / "network.params")
    except (ValueError, AssertionError, OSError, mx.MXNetError) as error:
        p.error(mxnet_reason(error) if isinstance(error, mx.MXNetError) else str(error))


if __name__ == "__main__":
    main()
