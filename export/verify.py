"""Compares the exported graph on ONNX Runtime with MXNet's forward pass of the symbol.

Finds the first node whose output is not finite, too: such a network is refused.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from export.errors import VerificationFailed
from export.lowering.convert import DATA
from export.passes.build import cut_at_logits, prune_heads, with_logits
from export.symbols.find import module_command
from export.symbols.graph import Entry, Graph, write_symbol
from export.symbols.networks import IMAGENET, Pixels
from export.symbols.params import Parameters, write_params
from export.symbols.shape_rules import DEFORMABLE

# What docs/parity.md states of every network; beyond it the outcome says so.
STATED_DIFFERENCE, STATED_AGREEMENT = 1e-4, 0.9999
# What is refused: no rounding of trained weights explains it.
MAX_RELATIVE_DIFFERENCE, MIN_LABEL_AGREEMENT = 1e-3, 0.999


@dataclass(frozen=True)
class Verification:
    """The differences between the exported graph and its source over all images.

    Attributes:
        absolute: the largest difference of two logits; None where labels alone are compared.
        relative: that divided by the largest logit.
        agreement: the share of equal labels at full size.
        mxnet_version: of the MXNet that ran the source; None where the source is an ONNX network.
        classes_seen: how many classes the labels hold.
    """

    images: int
    absolute: float | None
    relative: float | None
    agreement: float
    mxnet_version: str | None = None
    classes_seen: int = 0

    def __str__(self) -> str:
        parts = [f"{self.agreement:.4%} equal labels", f"{self.images} images"]
        if self.relative is not None:
            source, values = "the network's", "scores"
            if self.mxnet_version is not None:
                source, values = f"MXNet {self.mxnet_version}", "logits"
            parts.insert(
                0,
                f"{values} within {self.relative:.1e} (relative) and {self.absolute:.1e} (absolute)"
                f" of {source}",
            )
        bounds = f" (bounds: {STATED_DIFFERENCE:g}, {STATED_AGREEMENT:.2%})"
        beyond = self.mxnet_version is not None and not self.within_bounds
        return ", ".join(parts) + (bounds if beyond else "")

    @property
    def within_bounds(self) -> bool:
        """Returns True where both are as near as docs/parity.md states."""
        near = self.relative is None or self.relative <= STATED_DIFFERENCE
        return near and self.agreement >= STATED_AGREEMENT

    def is_within(self, difference: float, agreement: float) -> bool:
        """Returns True where neither bound is exceeded; logits that are not finite exceed both."""
        # Infinity is near to nothing, whatever is allowed.
        near = self.relative is None or (np.isfinite(self.relative) and self.relative <= difference)
        return bool(near and self.agreement >= agreement)


def mxnet_installed() -> bool:
    """Returns True where a subprocess could import MXNet."""
    return importlib.util.find_spec("mxnet") is not None


def verify(
    model: ModelProto,
    graph: Graph,
    parameters: Parameters,
    height: int,
    width: int,
    pixels: Pixels = IMAGENET,
) -> Verification:
    """Runs both on a few images of height x width.

    ``graph`` is the whole symbol at that size. MXNet runs in a subprocess. Raises
    VerificationFailed where MXNet does not run, or the outputs differ by more than float32
    arithmetic explains; of deformable networks only the labels are judged.
    """
    images = example_images(height, width)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        main = with_logits(prune_heads(graph), height, width)
        logits = cut_at_logits(main, height, width).graph
        both = _both_heads(main, logits)
        write_symbol(both, folder / "symbol.json")
        write_params(parameters, folder / "network.params")
        np.save(folder / "images.npy", images)
        np.savez(folder / "pixels.npz", mean=pixels.mean, std=pixels.std, bgr=pixels.bgr)
        try:
            version = _ask_mxnet("compare", name)
        except VerificationFailed as error:
            raise VerificationFailed(f"{error}; or --no-verify") from error
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        result = _compare(session, images, folder, version)
    # A deformable convolution jumps at the border, and rounding moves points across it
    # (docs/parity.md): labels alone judge such networks.
    deforms = any(node.op in DEFORMABLE for _, node in graph.operators())
    most = np.inf if deforms else MAX_RELATIVE_DIFFERENCE
    if not result.is_within(most, MIN_LABEL_AGREEMENT):
        raise VerificationFailed(
            f"ONNX Runtime and MXNet disagree: {result}; --no-verify writes the model without the"
            " comparison"
        )
    return result


def check_with_mxnet(symbol: Path, params: Path, image: str, shape: tuple[int, ...]) -> str:
    """Has MXNet load a symbol and run it once; returns MXNet's version.

    ``image`` is the symbol's uint8 input, of ``shape``. MXNet runs in a subprocess. Raises
    VerificationFailed with MXNet's reason.
    """
    return _ask_mxnet("load", str(symbol), str(params), image, *map(str, shape))


def _ask_mxnet(*arguments: str) -> str:
    command = [*module_command("export.mxnet_import"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise VerificationFailed(f"MXNet did not run the symbol: {reason}")
    return done.stdout.strip().splitlines()[-1]


def example_images(height: int, width: int) -> NDArray[np.uint8]:
    """Returns uint8 [3, height, width, 3]: noise, rectangles of one colour, and a gradient with
    noise."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    blocks = np.zeros((height, width, 3), np.uint8)
    for _ in range(40):
        top, left = generator.integers(0, height), generator.integers(0, width)
        rows, columns = generator.integers(1, height + 1), generator.integers(1, width + 1)
        blocks[top : top + rows // 2, left : left + columns // 2] = generator.integers(0, 256, 3)
    ramp = np.linspace(0, 220, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    gradient = (ramp + noise // 8).astype(np.uint8)
    return np.stack([noise, blocks, gradient])


def telling_images(height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Returns uint8 [1, height, width, 3] by what a message calls it: images on which networks
    that do not give numbers show it. Some do on flat or black ones alone."""
    noise, blocks, _ = example_images(height, width)
    images = {"noise": noise, "blocks of colour": blocks, "a black image": np.zeros_like(noise)}
    return {title: image[None] for title, image in images.items()}


def _both_heads(main: Graph, logits: Graph) -> Graph:
    """Returns the full-size head and the logits as outputs of one graph, whose image is
    ``data``."""
    name = logits.nodes[logits.heads[0].node].name
    index = max(i for i, node in enumerate(main.nodes) if node.name == name)
    head = main.heads[0]
    nodes = list(main.nodes)
    image = main.data_input()
    nodes[image] = replace(nodes[image], name=DATA)
    return Graph(tuple(nodes), (head, Entry(index, logits.heads[0].output)))


def _compare(
    session: onnxruntime.InferenceSession,
    images: NDArray[np.uint8],
    folder: Path,
    version: str,
) -> Verification:
    names = [output.name for output in session.get_outputs()]
    absolute, largest, equal, total = 0.0, 0.0, 0, 0
    seen: set[int] = set()
    for number, image in enumerate(images):
        found = dict(zip(names, session.run(None, {"image": image[None]}), strict=True))
        logits = np.load(folder / f"logits{number}.npy")
        labels = np.load(folder / f"labels{number}.npy")
        seen.update(np.unique(labels).tolist())
        largest = max(largest, float(np.abs(logits).max()))
        if "logits" in found:
            difference = np.abs(found["logits"] - logits).max()
            absolute = float(np.maximum(absolute, difference))  # keeps NaN
        if "mask" in found:
            equal += int((found["mask"] == labels).sum())
            total += labels.size
        else:
            equal += int((found["logits"].argmax(1) == logits.argmax(1)).sum())
            total += logits[:, 0].size
    relative = absolute / largest if largest else absolute
    return Verification(len(images), absolute, relative, equal / total, version, len(seen))


_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_ASKS = ("IsNaN", "IsInf")
_SHAPES = ("Shape", "Size")
_PREFIX = "segserve_finite_"


@dataclass(frozen=True)
class NotFinite:
    """The first node of a network, in the order of its file, whose output is not finite.

    Attributes:
        node: its name, operator and output.
        value: NaN or infinity.
        image: the one that was shown to the network.
        weight: a constant that it reads and that is not finite itself.
    """

    node: str
    value: str
    image: str
    weight: str | None = None

    def __str__(self) -> str:
        because = "" if self.weight is None else f" (its weight {self.weight!r} is not finite)"
        return f"{self.node} gives {self.value} for {self.image}{because}"


def find_not_finite(
    model: ModelProto,
    images: Mapping[str, NDArray[np.generic]],
    original: ModelProto | None = None,
) -> NotFinite | None:
    """Returns the first node that is to blame where ``model`` does not give numbers, else None.

    Args:
        model: of opset 13 or newer, without local functions; it stays as it is.
        images: by what a message calls each, the model's one input.
        original: the one that ``model`` was made of, some of whose tensors it computes: only these
            are looked at, and its nodes named. None is ``model`` itself.

    Raises what ONNX Runtime raises where it cannot run the model.
    """
    types = _element_types(model)
    original = model if original is None else original
    order = [node for node in original.graph.node if node.op_type != "Constant"]
    watched = [n for node in order for n in node.output if types.get(n) in _FLOATS]
    if not watched:
        return None
    session = _counting_session(model, watched, types)
    names = [output.name for output in session.get_outputs()]
    (wanted,) = session.get_inputs()
    deciding = _deciding(model, types)
    asked = {name for node in order if node.op_type in _ASKS for name in node.input}
    for title, image in images.items():
        counts = dict(zip(names, session.run(names, {wanted.name: image}), strict=True))
        wrong = {
            name: "NaN" if counts[f"{_PREFIX}nan_{name}"] else "infinity"
            for name in watched
            if counts[f"{_PREFIX}nan_{name}"] or counts[f"{_PREFIX}inf_{name}"]
        }
        if any((v == "NaN" and n not in asked) or n in deciding for n, v in wrong.items()):
            return _blame(original, order, wrong, title)
    return None


def not_finite(array: NDArray[np.generic]) -> bool:
    """Returns True where an array of floats holds NaN or infinity."""
    return array.dtype.kind == "f" and not np.isfinite(array).all()


def _element_types(model: ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {value.name: int(value.type.tensor_type.elem_type) for value in values}


def _deciding(model: ModelProto, types: dict[str, int]) -> set[str]:
    """Returns the tensors of floats, computed from the image, that outputs and integers are made
    of."""
    from_image = {model.graph.input[0].name}
    deciding = {output.name for output in model.graph.output}
    for node in model.graph.node:
        if node.op_type in _SHAPES or from_image.isdisjoint(node.input):
            continue
        from_image.update(node.output)
        kind = types.get(node.output[0])
        if node.op_type not in _ASKS and kind is not None and kind not in _FLOATS:
            deciding.update(node.input)
    return deciding & from_image


def _counting_session(
    model: ModelProto, watched: list[str], types: dict[str, int]
) -> onnxruntime.InferenceSession:
    """Returns a session whose only outputs are the counts of each tensor."""
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.output[:]
    for name in watched:
        source = name
        if types[name] != TensorProto.FLOAT:
            source = f"{_PREFIX}float_{name}"
            graph.node.append(helper.make_node("Cast", [name], [source], to=TensorProto.FLOAT))
        for kind, op in (("nan", "IsNaN"), ("inf", "IsInf")):
            flags, numbers, count = (f"{_PREFIX}{kind}{part}_{name}" for part in ("s", "01", ""))
            graph.node.append(helper.make_node(op, [source], [flags]))
            graph.node.append(helper.make_node("Cast", [flags], [numbers], to=TensorProto.FLOAT))
            graph.node.append(helper.make_node("ReduceSum", [numbers], [count], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(count, TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As it is written: a fused node would take the blame of another one.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _blame(
    model: ModelProto, order: list[NodeProto], wrong: dict[str, str], image: str
) -> NotFinite:
    node, output = next((node, name) for node in order for name in node.output if name in wrong)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = next(
        (
            name
            for name in node.input
            if name in constants and not_finite(numpy_helper.to_array(constants[name]))
        ),
        None,
    )
    called = f"{node.op_type} {node.name!r}" if node.name else node.op_type
    return NotFinite(f"{called} (output {output!r})", wrong[output], image, weight)
