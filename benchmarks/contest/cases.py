"""Defines the networks that the servers are compared on, and builds the files that each serves.

All files of a case hold the same weights. They are built once and kept, in ``~/.cache/segserve``
(or ``$SEGSERVE_CACHE_DIR``), under a hash of what they are made of: the network, the exporter's
sources, the photos.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

import export
from benchmarks.contest.services.network import read_photo, write_mask
from export.passes.build import REWRITES, build_model
from export.passes.onnx_graph import name_nodes
from export.precision.half import widen
from export.precision.quantise import Recipe, calibrate, quantise
from export.repository.mxnet_model import write_mxnet_model
from export.repository.triton import ModelFacts, write_model
from export.symbols.find import PUBLISHED
from export.symbols.graph import read_symbol
from export.symbols.params import random_params
from export.symbols.sizes import retarget
from serving.engines.graph import cut_graph
from serving.imaging.decode import decode
from serving.imaging.geometry import Size, scale
from serving.models.repository import read_model
from serving.palette import LabelSet, load_labels, plte
from serving.settings import cache_folder

MODEL = "net"
PHOTO = Size(1024, 2048)
SHIPPED = Path("model_repository") / "icnet_704x960"
MAX_MEGAPIXELS = 200.0


@dataclass(frozen=True)
class Case:
    """A network to serve, and how long it is loaded.

    Attributes:
        symbol: of a published network, given random weights; None: the model of ``shipped``.
        size: of the network's input.
        photo: the size of photos that are rendered where none are given.
        closed_s: how long callers send, of each closed loop.
        open_s: how long requests arrive, of the open loop.
        open_rate: requests a second of the open loop.
    """

    name: str
    title: str
    symbol: str | None
    size: Size
    photo: Size
    closed_s: float
    open_s: float
    open_rate: float
    dataset: str = "citys"
    shipped: Path = SHIPPED

    @property
    def calibrated(self) -> Size:
        """Returns the size at which int8 takes its ranges, where the size can be chosen."""
        if self.size == PHOTO:
            return Size(self.size.height // 2, self.size.width // 2)
        return self.size


CASES = {
    case.name: case
    for case in (
        Case("icnet", "ICNet-ResNet50, 19 classes, 1024x2048, random weights",
             "icnet_resnet50_citys", PHOTO, PHOTO, 12, 45, 0.4),
        Case("pspnet", "PSPNet-ResNet50, 19 classes, 1024x2048, random weights",
             "pspnet_resnet50_citys", PHOTO, PHOTO, 20, 60, 0.05),
        Case("trained", "the shipped ICNet at 704x960 on photos of 1024x2048",
             None, Size(704, 960), PHOTO, 6, 20, 4.0),
        Case("tiny", "ICNet-ResNet50 at 64x64, random weights: to try the benchmark itself",
             "icnet_resnet50_citys", Size(64, 64), Size(96, 128), 1, 1, 10.0),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The files that the servers are given; each repository holds one model, ``net``.

    Attributes:
        fp32, int8: for this server: ``logits``, which it restores itself.
        mask: ``mask`` alone from the network as it was trained: no rewrite of this exporter.
        mask_rewritten: the same after this exporter's rewrites; None where they cannot be undone.
        mxnet: folder of the MXNet symbol and parameters; None where there are none.
        colors: 768 bytes, of each class id.
        reference: plain float32's mask of the first photo, PNG, as every server should answer.
    """

    size: Size
    fp32: Path
    int8: Path
    mask: Path
    mask_rewritten: Path | None
    mxnet: Path | None
    colors: Path
    reference: Path

    @property
    def graph(self) -> Path:
        """Returns the ONNX file of ``mask``."""
        return self.mask / MODEL / "1" / "model.onnx"


def build_files(case: Case, photos: Sequence[bytes], threads: int) -> Files:
    """Returns a case's files; builds those that are not cached (a minute or two at 1024x2048).

    Args:
        photos: int8 takes its ranges from these.
        threads: of one run, for Triton, whose models carry that.
    """
    folder = cache_folder() / "contest" / f"{case.name}-{_key(case, photos, threads)}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for outdated in folder.parent.glob(f"{case.name}-*"):
            shutil.rmtree(outdated)
        aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            _build(case, photos, threads, aside)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    rewritten, mxnet = folder / "mask_rewritten", folder / "mxnet"
    return Files(
        case.size,
        folder / "fp32",
        folder / "int8",
        folder / "mask",
        rewritten if rewritten.exists() else None,
        mxnet / MODEL / "1" if mxnet.exists() else None,
        folder / "colors.bin",
        folder / "reference.png",
    )


def _build(case: Case, photos: Sequence[bytes], threads: int, folder: Path) -> None:
    if case.symbol is None:
        shipped = read_model(case.shipped)
        labels = shipped.labels
        whole = widen(onnx.load(str(shipped.graph(shipped.versions[-1]))))
        small = fp32 = cut_graph(whole, "logits")
        facts = ModelFacts(labels, MODEL, None, None, f"{case.shipped.name} in float32")
        graphs = {"mask": cut_graph(whole, "mask")}
    else:
        published = read_symbol(PUBLISHED / f"{case.symbol}.json.gz")
        symbol = retarget(published, *_pair(case.size))
        weights = random_params(symbol, *_pair(case.size), neutral=False)
        labels = load_labels(case.dataset)
        facts = ModelFacts(labels, MODEL, case.dataset, None, "random weights")

        def build(heads: Sequence[str], without: Sequence[str] = ()) -> onnx.ModelProto:
            return build_model(symbol, weights, *_pair(case.size), heads, without)

        fp32 = build(("logits",))
        small = build_model(published, weights, *_pair(case.calibrated), ("logits",))
        graphs = {"mask": build(("mask",), tuple(REWRITES)), "mask_rewritten": build(("mask",))}
        write_mxnet_model(
            folder / "mxnet", MODEL, symbol, weights, _pair(case.size), facts, 1, heads=("mask",)
        )
        size_file = folder / "mxnet" / MODEL / "1" / "size.json"
        size_file.write_text(json.dumps(_pair(case.size)))
    graphs |= {"fp32": fp32, "int8": to_int8(fp32, small, photos)}
    for name, graph in graphs.items():
        write_model(folder / name, MODEL, graph, facts, 1)
        _set_threads(folder / name / MODEL / "config.pbtxt", threads)
    colors = _colors(labels)
    (folder / "colors.bin").write_bytes(colors)
    pixels, own = read_photo(photos[0], *_pair(case.size))
    session = onnxruntime.InferenceSession(graphs["mask"].SerializeToString())
    mask = session.run(["mask"], {"image": pixels})[0][0]
    (folder / "reference.png").write_bytes(write_mask(mask, colors, own))


def to_int8(
    model: onnx.ModelProto, small: onnx.ModelProto, photos: Sequence[bytes]
) -> onnx.ModelProto:
    """Returns the graph in int8, by the first recipe of ``segserve export --precision int8``.

    Args:
        small: the same network at another size, to calibrate on: at 1024x2048 ONNX Runtime's
            calibrator needs 10 GB and more.
    """
    named, calibrated = onnx.ModelProto(), onnx.ModelProto()
    for source, copy in ((model, named), (small, calibrated)):
        copy.CopyFrom(source)
        name_nodes(copy)
    dims = small.graph.input[0].type.tensor_type.shape.dim
    size = Size(dims[1].dim_value, dims[2].dim_value)
    recipe = Recipe()
    images = [prepare(photo, size) for photo in photos]
    return quantise(named, calibrate(calibrated, images, recipe.method), recipe)


def _set_threads(path: Path, threads: int) -> None:
    """Sets one instance and its threads, which this server takes from its own settings."""
    config = text_format.Parse(path.read_text("utf-8"), ModelConfig())
    config.instance_group.add(count=1, kind=ModelInstanceGroup.KIND_CPU)
    config.parameters["intra_op_thread_count"].string_value = str(threads)
    path.write_text(text_format.MessageToString(config, as_utf8=True), "utf-8")


def prepare(photo: bytes, size: Size) -> npt.NDArray[np.uint8]:
    """Decodes a photo and scales it to a network's input, uint8 ``[H,W,3]``."""
    return scale(decode(photo, max_megapixels=MAX_MEGAPIXELS), size)


def _colors(labels: LabelSet) -> bytes:
    return plte(labels.colors, labels.ignore_label).ljust(768, b"\0")


def _pair(size: Size) -> tuple[int, int]:
    return size.height, size.width


def _key(case: Case, photos: Sequence[bytes], threads: int) -> str:
    made_of = (case.symbol, case.size, case.dataset, case.shipped, threads)
    digest = hashlib.sha256(repr(made_of).encode())
    here = Path(__file__)
    sources = [*Path(export.__path__[0]).rglob("*.py"), here, here.parent / "services/network.py"]
    if case.symbol is None:
        sources += [path for path in case.shipped.rglob("*") if path.is_file()]
    else:
        sources.append(PUBLISHED / f"{case.symbol}.json.gz")
    for content in (*photos, *(path.read_bytes() for path in sorted(sources))):
        digest.update(content)
    return digest.hexdigest()[:12]
