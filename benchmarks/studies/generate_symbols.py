"""Writes the published networks' symbols into ``export/symbols/published/``.

``python -m benchmarks.studies.generate_symbols [NAME ...] [--output DIR]``. The networks are
GluonCV's own classes, built and traced without weights; the exporter moves them to any legal size.
Needs the extra ``training``. The same versions write the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
from dataclasses import dataclass
from pathlib import Path

from export.symbols.find import PUBLISHED


@dataclass(frozen=True)
class PublishedNetwork:
    """A network that GluonCV publishes results for: its module, class and construction size."""

    module: str
    constructor: str
    backbone: str
    classes: int
    height: int
    width: int


NETWORKS = {
    "icnet_resnet50_citys": PublishedNetwork("icnet", "ICNet", "resnet50", 19, 1024, 2048),
    "icnet_resnet50_mhpv1": PublishedNetwork("icnet", "ICNet", "resnet50", 19, 768, 768),
    "icnet_resnet101_citys": PublishedNetwork("icnet", "ICNet", "resnet101", 19, 1024, 2048),
    "pspnet_resnet50_citys": PublishedNetwork("pspnet", "PSPNet", "resnet50", 19, 1024, 2048),
    "pspnet_resnet101_citys": PublishedNetwork("pspnet", "PSPNet", "resnet101", 19, 1024, 2048),
    "fcn_resnet50_citys": PublishedNetwork("fcn", "FCN", "resnet50", 19, 1024, 2048),
    "deeplab_resnet50_citys": PublishedNetwork(
        "deeplabv3", "DeepLabV3", "resnet50", 19, 1024, 2048
    ),
}


def trace(network: PublishedNetwork) -> str:
    """Returns the network's ``symbol.json``; parameters are called ``icnet0_...`` and the like."""
    from benchmarks.gluoncv_import import import_gluoncv, mx

    module = import_gluoncv(f"model_zoo.{network.module}")
    # A name manager of its own: Gluon's counters would number the networks of one process on.
    with mx.name.NameManager():
        net = getattr(module, network.constructor)(
            network.classes,
            backbone=network.backbone,
            pretrained_base=False,
            height=network.height,
            width=network.width,
        )
        outputs = net(mx.sym.var("data"))
    text: str = mx.sym.Group(list(outputs)).tojson()
    return text


def pack(text: str) -> bytes:
    """Compresses with gzip, without time and name: the same symbol gives the same bytes."""
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def main() -> None:
    """Writes the named networks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.generate_symbols")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"networks, of {', '.join(NETWORKS)}; default: all"
    )
    parser.add_argument("--output", type=Path, default=PUBLISHED)
    options = parser.parse_args()
    unknown = set(options.names) - set(NETWORKS)
    if unknown:
        parser.error(
            f"{', '.join(sorted(unknown))} is not a network: expected {', '.join(NETWORKS)}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or NETWORKS:
        path = options.output / f"{name}.json.gz"
        path.write_bytes(pack(trace(NETWORKS[name])))
        print(path)


if __name__ == "__main__":
    main()
