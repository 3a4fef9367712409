"""Gluon network <-> files: hybridized symbol, and parameters under the symbol's names.

``python -m training.symbols --model icnet --backbone resnet50 --num-classes 19 --size 1024x2048
--output DIR`` writes ``DIR/network-symbol.json`` for any legal size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from training.mxnet_import import mx
from training.networks import ICNet, build
from training.options import parse_size


def write_symbol(network: ICNet, path: Path, height: int, width: int) -> None:
    """Saves the graph with all its outputs; the network stays as it was."""
    full_output = network.full_output
    network.full_output = True
    network.hybridize(static_alloc=True, static_shape=True)
    context = next(iter(network.collect_params().values())).list_ctx()[0]
    network(mx.nd.zeros((1, 3, height, width), ctx=context))
    with tempfile.TemporaryDirectory() as folder:
        network.export(str(Path(folder) / "network"))
        text = (Path(folder) / "network-symbol.json").read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    network.full_output = full_output
    network.hybridize(static_alloc=True, static_shape=True)


def write_parameters(network: mx.gluon.HybridBlock, path: Path) -> None:
    """Saves all parameters as ``arg:NAME`` and ``aux:NAME``; replaces the file whole."""
    arrays = {}
    for name, parameter in network.collect_params().items():
        kind = "aux" if name.endswith(("running_mean", "running_var")) else "arg"
        arrays[f"{kind}:{name}"] = parameter.data(parameter.list_ctx()[0]).as_in_context(mx.cpu())
    aside = path.with_name(path.name + ".part")
    mx.nd.save(str(aside), arrays)
    os.replace(aside, path)


def read_parameters(
    network: mx.gluon.HybridBlock, path: Path, contexts: list[mx.context.Context]
) -> None:
    """Loads a file of ``write_parameters``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a parameter is missing, unknown, or of another shape; all are named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no parameters at {path}")
    arrays = {name.split(":", 1)[-1]: array for name, array in mx.nd.load(str(path)).items()}
    parameters = network.collect_params()
    problems = [f"{name} is missing" for name in parameters if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in parameters]
    problems += [
        f"{name} is {array.shape}, the network has {parameters[name].shape}"
        for name, array in arrays.items()
        if name in parameters and parameters[name].shape != array.shape
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit this network ({len(problems)} problems): "
            + "; ".join(problems[:5])
        )
    for name, array in arrays.items():
        parameters[name].set_data(array.as_in_context(contexts[0]))


def main() -> None:
    """Writes the symbol of a network, with random weights' shapes only."""
    p = argparse.ArgumentParser("python -m training.symbols")
    p.add_argument("--model", default="icnet")
    p.add_argument("--backbone", default="resnet50")
    p.add_argument("--width", type=float, default=1.0)
    p.add_argument("--num-classes", type=int, required=True)
    p.add_argument("--size", type=parse_size, required=True, metavar="HEIGHTxWIDTH")
    p.add_argument("--output", type=Path, required=True)
    a = p.parse_args()
    network = build(a.model, a.backbone, a.num_classes, *a.size, channel_multiplier=a.width)
    network.initialize()
    write_symbol(network, a.output / "network-symbol.json", *a.size)


if __name__ == "__main__":
    main()
