"""Facts about PSPNet, FCN, DeepLabV3, DeepLabV3+ and MSRA's DeepLab, as JSON on stdout."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from network_facts import differences, refusal, shapes, vary_norms

from training.gluoncv_import import import_gluoncv
from training.mxnet_import import mx
from training.networks import Network, build
from training.symbols import trace, write_parameters, write_symbol

HEIGHT, WIDTH, CLASSES = 64, 96, 7
GLUONCV = {"pspnet": "PSPNet", "fcn": "FCN", "deeplabv3": "DeepLabV3"}


def reference(name: str, backbone: str, aux: bool) -> mx.gluon.HybridBlock:
    module = import_gluoncv(f"model_zoo.{name}")
    return getattr(module, GLUONCV[name])(
        CLASSES, backbone=backbone, aux=aux, pretrained_base=False, height=HEIGHT, width=WIDTH
    )


def compare_with_gluoncv(name: str, image: mx.nd.NDArray, folder: Path) -> dict[str, object]:
    theirs = reference(name, "resnet50", True)
    theirs.initialize(mx.init.Xavier(), force_reinit=True)
    theirs(image)
    vary_norms(theirs)
    theirs.save_parameters(str(folder / "reference.params"))
    ours = build(name, "resnet50", CLASSES, HEIGHT, WIDTH, aux=True)
    ours.load_parameters(str(folder / "reference.params"))
    deep = [build(name, "resnet101", CLASSES, HEIGHT, WIDTH), reference(name, "resnet101", False)]
    deep[1].infer_shape(image)
    return {
        "same_names_and_shapes": shapes(ours) == shapes(theirs),
        "same_at_101_without_aux": shapes(deep[0]) == shapes(deep[1]),
        "outputs_without_aux": len(trace(deep[0]).list_outputs()),
        **differences(ours, theirs, image),
    }


def describe(network: Network, image: mx.nd.NDArray, folder: Path) -> dict[str, object]:
    """What every network must do: run, hybridized or not, and through its files."""
    network.initialize(mx.init.MSRAPrelu(slope=0))
    network(image)
    vary_norms(network)
    plain = network(image)[0].asnumpy()
    write_symbol(network, folder / "network-symbol.json", *image.shape[2:])
    write_parameters(network, folder / "network.params")
    symbol = mx.sym.load(str(folder / "network-symbol.json"))
    inputs = [n for n in symbol.list_arguments() if n in ("data", "softmax_label")]
    block = mx.gluon.SymbolBlock.imports(
        str(folder / "network-symbol.json"), inputs, str(folder / "network.params")
    )
    label = [mx.nd.zeros((1, *image.shape[2:]))] if "softmax_label" in inputs else []
    loaded = block(image, *label)
    first = loaded[0] if isinstance(loaded, list | tuple) else loaded
    network.hybridize()
    hybrid = network(image)[0].asnumpy()
    epsilons: dict[str, int] = {}
    for node in json.loads(symbol.tojson())["nodes"]:
        if "BatchNorm" in node["op"]:
            key = f"{float(node['attrs']['eps']):g}"
            epsilons[key] = epsilons.get(key, 0) + 1
    return {
        "shape": plain.shape,
        "hybrid": float(np.abs(plain - hybrid).max() / np.abs(plain).max()),
        "file": float(np.abs(plain - first.asnumpy()).max() / np.abs(plain).max()),
        "epsilons": epsilons,
        "parameters": [
            n for n in network.collect_params() if n != "softmax_label"
        ],
        "trainable": sum(
            int(np.prod(p.shape))
            for n, p in network.collect_params().items()
            if not n.endswith(("mean", "var", "label"))
        ),
        "strides": sorted({shape[2] for shape in _maps(symbol, image.shape)}),
        "sum": float(plain.sum(1).mean()),
    }  # fmt: skip


def _maps(symbol: mx.sym.Symbol, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    internals = symbol.get_internals()
    _, found, _ = internals.infer_shape(data=shape)
    return [s for s in found if len(s) == 4 and s[2] > 7]


def norms(name: str, backbone: str) -> dict[str, object]:
    sync = mx.gluon.contrib.nn.SyncBatchNorm
    network = build(
        name, backbone, CLASSES, HEIGHT, WIDTH, sync, {"num_devices": 3}, 0.25, aux=True
    )
    nodes = [n for n in json.loads(trace(network).tojson())["nodes"] if "BatchNorm" in n["op"]]
    return {
        "operators": sorted({n["op"] for n in nodes}),
        "devices": sorted({n["attrs"]["ndev"] for n in nodes}),
        "count": len(nodes),
    }


def main() -> None:
    mx.random.seed(3)
    random = np.random.default_rng(1)
    image = mx.nd.array(random.normal(size=(1, 3, HEIGHT, WIDTH)))
    odd = mx.nd.array(random.normal(size=(1, 3, 65, 97)))
    small = {"channel_multiplier": 0.25}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = {
            "gluoncv": {n: compare_with_gluoncv(n, image, folder) for n in GLUONCV},
            "networks": {
                "deeplabv3plus": describe(
                    build("deeplabplus", "xception65", CLASSES, HEIGHT, WIDTH, **small),
                    image, folder,
                ),
                "deeplabv3plus_8": describe(
                    build("deeplabv3plus", "xception65", CLASSES, 65, 97, output_stride=8, **small),
                    odd, folder,
                ),
                "deeplab_msra": describe(
                    build("deeplab_msra", "resnet101", CLASSES, HEIGHT, WIDTH, **small),
                    image, folder,
                ),
                "deeplab_msra_dcn": describe(
                    build("deeplab_msra_dcn", "resnet50", CLASSES, 65, 97, **small), odd, folder
                ),
                "fcn_odd": describe(
                    build("fcn", "resnet18", CLASSES, 65, 97, **small), odd, folder
                ),
            },
            "full": {
                name: describe_size(build(name, backbone, classes, 64, 64))
                for name, backbone, classes in (
                    ("deeplabv3plus", "xception65", 21),
                    ("deeplab_msra", "resnet101", 19),
                    ("deeplab_msra_dcn", "resnet101", 19),
                )
            },
            "norms": {
                n: norms(n, "xception65" if n == "deeplabv3plus" else "resnet50")
                for n in ("icnet", *GLUONCV, "deeplabv3plus", "deeplab_msra_dcn")
            },
            "refusals": {
                "pspnet": refusal(lambda: build("psp", "resnet50", 7, 711, 1003)),
                "deeplabv3": refusal(lambda: build("deeplab", "resnet50", 7, 713, 1000)),
                "icnet": refusal(lambda: build("icnet", "resnet50", 7, 712, 1000)),
                "fcn": refusal(lambda: build("fcn", "resnet50", 7, 9, 1000)),
                "deeplabv3plus": refusal(lambda: build("deeplabplus", "xception65", 7, 712, 1004)),
                "stride": refusal(
                    lambda: build("deeplabplus", "xception65", 7, 64, 64, output_stride=4)
                ),
                "backbone": refusal(lambda: build("deeplabplus", "resnet50", 7, 64, 64)),
                "msra": refusal(lambda: build("deeplab_msra", "resnet18", 7, 64, 64)),
            },
        }  # fmt: skip
    json.dump(facts, sys.stdout)


def describe_size(network: Network) -> int:
    """Trainable parameters, without computing anything."""
    symbol = trace(network)
    found, _, _ = symbol.infer_shape(data=(1, 3, 64, 64))
    return sum(
        int(np.prod(shape))
        for name, shape in zip(symbol.list_arguments(), found, strict=True)
        if name not in ("data", "softmax_label")
    )


if __name__ == "__main__":
    main()
