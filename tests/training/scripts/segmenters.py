"""Facts about the networks, as JSON on stdout."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from network_facts import differences, refusal, shapes, vary_norms

from benchmarks.gluoncv_import import import_gluoncv
from export.mxnet_import import mx
from export.symbols.networks import NETWORKS
from training.networks import ARCHITECTURES, Network, build, size_rule
from training.networks.layers import Norm
from training.networks.tracing import read_parameters, trace, write_parameters, write_symbol
from training.options import parse_options
from training.trainers.gluon_trainer import GluonLearner

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
        "strides": sorted({shape[2] for shape in _maps(symbol, image.shape) if shape[2] > 7}),
        "deepest": min(shape[2] for shape in _maps(symbol, image.shape) if shape[2] > 3),
        "sum": float(plain.sum(1).mean()),
    }  # fmt: skip


def _maps(symbol: mx.sym.Symbol, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    internals = symbol.get_internals()
    _, found, _ = internals.infer_shape(data=shape)
    return [s for s in found if len(s) == 4]


def norms(name: str, backbone: str) -> dict[str, object]:
    sync = mx.gluon.contrib.nn.SyncBatchNorm
    size = (193, 225) if name == "icnet_paper" else (HEIGHT, WIDTH)
    norm = Norm(sync, num_devices=3)
    network = build(name, backbone, CLASSES, *size, norm, 0.25, aux=True)
    nodes = [n for n in json.loads(trace(network).tojson())["nodes"] if "BatchNorm" in n["op"]]
    return {
        "operators": sorted({n["op"] for n in nodes}),
        "devices": sorted({n["attrs"]["ndev"] for n in nodes}),
        "count": len(nodes),
    }


def strides_share_parameters(
    backbone: str, image: mx.nd.NDArray, folder: Path
) -> dict[str, object]:
    """A network of output stride 16, its file loaded at 8."""
    coarse, fine = (
        build("deeplabv3plus", backbone, CLASSES, HEIGHT, WIDTH, channel_multiplier=0.25,
              output_stride=stride)
        for stride in (16, 8)
    )  # fmt: skip
    coarse.initialize(mx.init.MSRAPrelu(slope=0))
    before = coarse(image)[0]
    vary_norms(coarse)
    write_parameters(coarse, folder / "coarse.params")
    fine.initialize()
    read_parameters(fine, folder / "coarse.params", [mx.cpu()])
    return {
        "same": sorted(coarse.collect_params()) == sorted(fine.collect_params()),
        "shape": fine(image)[0].shape,
        "differs": float((fine(image)[0] - before).abs().max().asscalar()),
    }


def race() -> dict[str, object]:
    """A thread a device asks a learner's network, as GluonCV's DataParallelModel does.

    Building the graph in several threads at once breaks Gluon's name scopes; here the learner has
    built it in the main thread, and no thread does so again.
    """
    arguments = ["--dataset", "camvid", "--model", "icnet", "--backbone", "resnet18", "--width",
                 "0.25", "--crop-size", f"{HEIGHT}x{WIDTH}", "--batch-size", "2"]  # fmt: skip
    network = GluonLearner(parse_options(arguments), CLASSES).network
    devices = [mx.cpu(0), mx.cpu(1)]
    network.collect_params().reset_ctx(devices)
    graph, built, problems = network._cached_graph, [], []
    build_cache = network._build_cache
    network._build_cache = lambda *inputs: (built.append(1), build_cache(*inputs))
    images = [mx.nd.random.normal(shape=(1, 3, HEIGHT, WIDTH), ctx=device) for device in devices]
    expected = [network(image)[0].asnumpy() for image in images]
    built.clear()

    def ask(index: int) -> None:
        try:
            for _ in range(4):
                if not np.array_equal(network(images[index])[0].asnumpy(), expected[index]):
                    problems.append(f"another result on device {index}")
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(devices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"problems": problems, "built": bool(graph), "built_again": len(built)}


def contract(name: str) -> dict[str, object]:
    """What every entry of the mapping promises; nothing is computed."""
    rule = size_rule(name)
    height, width = rule.nearest(200), rule.nearest(232)
    network = build(name, None, CLASSES, height, width, channel_multiplier=0.25)
    symbol = trace(network)
    _, shapes, _ = symbol.infer_shape(data=(2, 3, height, width))
    network.full_output = False
    return {
        "size": [height, width],
        "prediction": shapes[0],
        "classes": sorted({shape[1] for shape in shapes}),
        "low_outputs": len(network(mx.sym.var("data"))),
        "refusal": refusal(lambda: build(name, None, CLASSES, 10, 10)),
    }


def main() -> None:
    mx.random.seed(3)
    random = np.random.default_rng(1)
    image = mx.nd.array(random.normal(size=(1, 3, HEIGHT, WIDTH)))
    odd = mx.nd.array(random.normal(size=(1, 3, 65, 97)))
    tall = mx.nd.array(random.normal(size=(1, 3, 193, 225)))
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
                "deeplabv2": describe(
                    build("deeplabv2", "resnet50", CLASSES, 65, 97, **small), odd, folder
                ),
                "deeplabv3plus_resnet": describe(
                    build("deeplabv3plus", "resnet18", CLASSES, HEIGHT, WIDTH, **small),
                    image, folder,
                ),
                "deeplabv3plus_resnet_8": describe(
                    build("deeplabv3plus", "resnet18", CLASSES, HEIGHT, WIDTH, output_stride=8,
                          **small),
                    image, folder,
                ),
                "icnet_fast_seg": describe(
                    build("icnet_fast_seg", "resnet18", CLASSES, HEIGHT, WIDTH, **small),
                    image, folder,
                ),
                "icnet_two_pass": describe(
                    build("icnet_two_pass", "resnet18", CLASSES, HEIGHT, WIDTH, **small),
                    image, folder,
                ),
                "icnet_paper": describe(
                    build("icnet_paper", "resnet50", CLASSES, 193, 225, **small), tall, folder
                ),
            },
            "full": {
                name: describe_size(build(name, backbone, classes, length, length), length)
                for name, backbone, classes, length in (
                    ("deeplabv3plus", "xception65", 21, 64),
                    ("deeplab_msra", "resnet101", 19, 64),
                    ("deeplab_msra_dcn", "resnet101", 19, 64),
                    ("deeplabv2", "resnet101", 21, 64),
                    ("icnet_paper", "resnet50", 19, 193),
                )
            },
            "norms": {
                **{n: norms(n, "xception65" if n == "deeplabv3plus" else "resnet50")
                   for n in NETWORKS},
                "deeplabv3plus_resnet": norms("deeplabv3plus", "resnet50"),
            },
            "strides": {
                backbone: strides_share_parameters(backbone, image, folder)
                for backbone in ("xception65", "resnet18")
            },
            "contracts": {n: contract(n) for n in ARCHITECTURES},
            "race": race(),
            "refusals": {
                "pspnet": refusal(lambda: build("psp", "resnet50", 7, 711, 1003)),
                "deeplabv3": refusal(lambda: build("deeplab", "resnet50", 7, 713, 1000)),
                "icnet": refusal(lambda: build("icnet", "resnet50", 7, 712, 1000)),
                "fcn": refusal(lambda: build("fcn", "resnet50", 7, 9, 1000)),
                "deeplabv3plus": refusal(lambda: build("deeplabplus", "xception65", 7, 712, 1004)),
                "stride": refusal(
                    lambda: build("deeplabplus", "xception65", 7, 64, 64, output_stride=4)
                ),
                "backbone": refusal(lambda: build("deeplabplus", "vgg16", 7, 64, 64)),
                "paper": refusal(lambda: build("icnet_paper", "resnet50", 7, 1024, 2048)),
                "paper_small": refusal(lambda: build("icnet_paper", "resnet50", 7, 161, 193)),
                "msra": refusal(lambda: build("deeplab_msra", "resnet18", 7, 64, 64)),
            },
        }  # fmt: skip
    json.dump(facts, sys.stdout)


def describe_size(network: Network, length: int) -> int:
    """Trainable parameters, without computing anything."""
    symbol = trace(network)
    found, _, _ = symbol.infer_shape(data=(1, 3, length, length))
    return sum(
        int(np.prod(shape))
        for name, shape in zip(symbol.list_arguments(), found, strict=True)
        if name not in ("data", "softmax_label")
    )


if __name__ == "__main__":
    main()
