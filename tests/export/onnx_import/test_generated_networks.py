"""Networks of every form that people's files have: what is served equals the file itself.

Each is written here, imported, opened as the server opens it, and asked for the labels of images of
its size; ONNX Runtime runs the file as it was written, on images that NumPy prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from click.testing import Result
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from PIL import Image

from export.precision.served_graph import serve_graph
from export.verify import example_images
from serving.models.repository import read_model
from tests.support.import_command import run_import

CLASSES = 5
FIVE = ("--classes", "a,b,c,d,e")
Run = Callable[..., Result]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Form:
    """How a network is written.

    Attributes:
        size: of its images; ``dynamic`` leaves it, and the batch, open.
        stride: what the network's maps are smaller by; then it resizes to the image.
        half: weights, input and output in float16.
        argmax: it gives labels, of this type.
    """

    opset: int = 17
    size: tuple[int, int] = (32, 48)
    dynamic: bool = False
    channels: int = 3
    channels_last: bool = False
    half: bool = False
    stride: int = 1
    softmax: bool = False
    argmax: int | None = None


def write_network(path: Path, form: Form) -> Path:
    """Two convolutions with a ReLU between them, and the end that the form asks for."""
    random = np.random.default_rng(form.channels)
    kind = TensorProto.FLOAT16 if form.half else TensorProto.FLOAT
    array = np.float16 if form.half else np.float32
    shapes = {
        "w1": (8, form.channels, 3, 3),
        "b1": (8,),
        "w2": (CLASSES, 8, 1, 1),
        "b2": (CLASSES,),
    }
    weights = [
        numpy_helper.from_array(random.normal(0, 0.6, shape).astype(array), name)
        for name, shape in shapes.items()
    ]
    nodes: list[NodeProto] = []

    def add(op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}_{len(nodes)}".lower()
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        weights.append(numpy_helper.from_array(values, name))
        return name

    current = "image"  # a name that the contract has, too
    if form.channels_last:
        current = add("Transpose", current, perm=[0, 3, 1, 2])
    current = add("Conv", current, "w1", "b1", pads=[1] * 4, strides=[form.stride] * 2)
    current = add("Conv", add("Relu", current), "w2", "b2")
    if form.stride > 1:
        scales = constant("scales", np.array([1, 1, form.stride, form.stride], np.float32))
        if form.opset < 10:
            current = add("Upsample", current, scales, mode="nearest")
        elif form.opset < 11:
            current = add("Resize", current, scales, mode="nearest")
        else:
            more = {"coordinate_transformation_mode": "half_pixel"}
            whole = constant("whole", np.zeros(0, np.float32)) if form.opset < 13 else ""
            current = add("Resize", current, whole, scales, mode="linear", **more)
    if form.softmax:
        current = add("Softmax", current, axis=1)
    height, width = ("h", "w") if form.dynamic else form.size
    batch = "n" if form.dynamic else 1
    result_kind, shape = kind, [batch, CLASSES, height, width]
    if form.argmax is not None:
        current = add("ArgMax", current, axis=1, keepdims=0)
        if form.argmax != TensorProto.INT64:
            current = add("Cast", current, to=form.argmax)
        result_kind, shape = form.argmax, [batch, height, width]
    elif form.channels_last:
        current = add("Transpose", current, perm=[0, 2, 3, 1])
        shape = [batch, height, width, CLASSES]
    lengths = (
        [height, width, form.channels] if form.channels_last else [form.channels, height, width]
    )
    graph = helper.make_graph(
        nodes, "generated",
        [helper.make_tensor_value_info("image", kind, [batch, *lengths])],
        [helper.make_tensor_value_info(current, result_kind, shape)], weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", form.opset)]
    version = max(4, min(10, helper.find_min_ir_version_for(opsets)))
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=version), path)
    return path


def raw_labels(path: Path, images: Images, form: Form) -> npt.NDArray[np.generic]:
    """The labels that the file gives for values from -1 to 1."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = []
    for photo in images:
        pixels = photo
        if form.channels == 1:
            pixels = np.asarray(Image.fromarray(photo).convert("L"))[..., None]
        values = (pixels / 127.5 - 1).astype(np.float16 if form.half else np.float32)
        values = values if form.channels_last else values.transpose(2, 0, 1)
        (answer,) = session.run(None, {"image": np.ascontiguousarray(values[None])})
        if form.argmax is None:
            answer = answer.argmax(3 if form.channels_last else 1)
        found.append(answer[0])
    return np.stack(found)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_import, tmp_path / "models")


def check_served(
    run: Run, tmp_path: Path, path: Path, form: Form, *arguments: object, least: float = 0.9999
) -> None:
    """Imports the file, and compares what is served with what it gives."""
    layout = ("--layout", "NHWC") if form.channels_last else ()
    size = ("--size", "x".join(map(str, form.size))) if form.dynamic else ()
    result = run(path, *FIVE, "--pixels", "signed", *layout, *size, *arguments)
    assert result.exit_code == 0, result.output
    folder = read_model(tmp_path / "models" / "net")
    images = example_images(*form.size)
    expected = raw_labels(path, images, form)
    assert len(np.unique(expected)) > 2
    with serve_graph(onnx.load(str(folder.graph(1)))) as served:
        labels = np.stack([served.labels(image) for image in images])
    assert (labels == expected).mean() >= least


FORMS = {
    "fixed odd size": Form(size=(37, 51)),
    "any size": Form(dynamic=True),
    "any odd size": Form(dynamic=True, size=(37, 51)),
    "NHWC": Form(channels_last=True),
    "NHWC, any size": Form(channels_last=True, dynamic=True),
    "gray": Form(channels=1),
    "gray, NHWC": Form(channels=1, channels_last=True),
    "gray, any size": Form(channels=1, dynamic=True),
    "labels": Form(argmax=TensorProto.INT64),
    "labels in 32 bits": Form(argmax=TensorProto.INT32),
    "labels in bytes": Form(argmax=TensorProto.UINT8),
    "softmax and labels": Form(softmax=True, argmax=TensorProto.INT64, stride=2),
    "resized": Form(stride=2),
    "resized, any size": Form(stride=4, dynamic=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(run: Run, tmp_path: Path, name: str) -> None:
    path = write_network(tmp_path / "net.onnx", FORMS[name])
    check_served(run, tmp_path, path, FORMS[name])


@pytest.mark.parametrize("argmax", [None, TensorProto.INT64])
@pytest.mark.parametrize("opset", range(9, 24))
def test_opsets(run: Run, tmp_path: Path, opset: int, argmax: int | None) -> None:
    form = Form(opset=opset, argmax=argmax, softmax=True, stride=2)
    check_served(run, tmp_path, write_network(tmp_path / "net.onnx", form), form)


@pytest.mark.parametrize("form", [Form(half=True), Form(half=True, channels_last=True, stride=2)])
def test_half_precision(run: Run, tmp_path: Path, form: Form) -> None:
    check_served(run, tmp_path, write_network(tmp_path / "net.onnx", form), form, least=0.995)


def test_weights_in_a_file_of_their_own(run: Run, tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx", Form())
    onnx.save(onnx.load(str(path)), path, save_as_external_data=True, location="net.weights",
              size_threshold=0)  # fmt: skip
    assert (tmp_path / "net.weights").stat().st_size > 0
    check_served(run, tmp_path, path, Form())
    (tmp_path / "net.weights").unlink()
    result = run(path, *FIVE, "--pixels", "signed")
    assert result.exit_code == 1
    assert "net.weights" in result.stderr


class Photos(CalibrationDataReader):
    """What the quantised networks are calibrated on."""

    def __init__(self) -> None:
        self._left = list(example_images(32, 48))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        if not self._left:
            return None
        values = (self._left.pop() / 127.5 - 1).astype(np.float32).transpose(2, 0, 1)
        return {"image": values[None]}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8])
@pytest.mark.parametrize("quantised", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_networks_that_were_quantised_elsewhere(
    run: Run, tmp_path: Path, quantised: QuantFormat, activation: QuantType, per_channel: bool
) -> None:
    source = write_network(tmp_path / "float.onnx", Form())
    path = tmp_path / "net.onnx"
    quantize_static(source, path, Photos(), quantised, activation_type=activation,
                    weight_type=QuantType.QInt8, per_channel=per_channel)  # fmt: skip
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert ("QLinearConv" in kinds) == (quantised is QuantFormat.QOperator)
    check_served(run, tmp_path, path, Form(), least=0.99)
    again = run(path, *FIVE, "--pixels", "signed", "--precision", "fp16")
    assert again.exit_code == 1
    assert "in int8 already; leave --precision fp16 out" in again.stderr


def write_heads(path: Path, *names: str) -> Path:
    """A network of several outputs: of five scores, of one number, and queries without a map."""
    weights = [
        numpy_helper.from_array(
            np.random.default_rng(1).normal(size=(n, 3, 1, 1)).astype("f"), name
        )
        for name, n in (("ws", CLASSES), ("wd", 1), ("wa", CLASSES))
    ]
    known = {
        "seg": (helper.make_node("Conv", ["x", "ws"], ["seg"]), [1, CLASSES, 32, 48]),
        "depth": (helper.make_node("Conv", ["x", "wd"], ["depth"]), [1, 1, 32, 48]),
        "aux": (helper.make_node("Conv", ["x", "wa"], ["aux"]), [1, CLASSES, 32, 48]),
        "queries": (
            helper.make_node("ReduceMean", ["x"], ["queries"], axes=[3], keepdims=0), [1, 3, 32],
        ),
    }  # fmt: skip
    graph = helper.make_graph(
        [known[name][0] for name in names], "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 48])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, known[name][1]) for name in names],
        weights,
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def test_one_of_several_heads_is_chosen(run: Run, tmp_path: Path) -> None:
    path = write_heads(tmp_path / "net.onnx", "depth", "aux", "seg")
    given = (*FIVE, "--pixels", "signed")
    result = run(path, *given, "--output", "seg")
    assert result.exit_code == 0, result.output
    assert "output seg; left out: depth, aux" in result.stderr
    session = onnxruntime.InferenceSession(str(path))
    images = example_images(32, 48)
    values = (images / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2)
    expected = [session.run(["seg"], {"x": one[None]})[0].argmax(1)[0] for one in values]
    folder = read_model(tmp_path / "models" / "net")
    with serve_graph(onnx.load(str(folder.graph(1)))) as served:
        labels = [served.labels(image) for image in images]
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["depth"], "the output depth is [1, 1, 32, 48]: one number a pixel, as a depth"),
        (["depth", "seg"], "(the network gives depth [1, 1, 32, 48], seg [1, 5, 32, 48])"),
        (["queries", "seg"], "(the network gives queries [1, 3, 32], seg [1, 5, 32, 48])"),
    ],
)
def test_other_outputs_are_refused_by_name(
    run: Run, tmp_path: Path, names: list[str], message: str
) -> None:
    path = write_heads(tmp_path / "net.onnx", *names)
    result = run(path, *FIVE, "--pixels", "signed")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("form", "arguments", "message"),
    [
        (Form(channels=1), ("--pixels", "imagenet"), "one mean and one deviation"),
        (Form(channels=1), ("--pixels", "unit", "--channels", "3"), "--channels 3, but the input"),
        (Form(channels=4), ("--pixels", "unit"), "4 channels; networks of photos, in colour (3)"),
        (Form(channels=2), ("--pixels", "unit"), "2 channels; networks of photos, in colour (3)"),
    ],
)
def test_other_channels_are_refused(
    run: Run, tmp_path: Path, form: Form, arguments: tuple[str, ...], message: str
) -> None:
    path = write_network(tmp_path / "net.onnx", form)
    result = run(path, *FIVE, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_one_mean_for_gray(run: Run, tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.onnx", Form(channels=1))
    given = (*FIVE, "--mean", "0.5", "--std", "0.5", "--range", "1", "--channels", "1")
    result = run(path, *given)
    assert result.exit_code == 0, result.output
    assert "the network sees the photo in gray" in result.stderr
