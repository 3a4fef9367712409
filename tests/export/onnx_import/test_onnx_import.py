"""Networks that PyTorch exports, imported and compared with PyTorch's own forward pass."""

import importlib.util
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import ExportError
from export.onnx_import.network import ImportOptions, InputFormat, import_network
from export.onnx_import.source import opset_of, read_network
from export.onnx_import.verify import resize_scores
from export.verify import example_images
from tests.support.import_command import IMAGENET, normalised, open_imported, run_import
from tests.support.precision_model import write_scenes

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed (extra 'test')", allow_module_level=True)
from tests.support.torch_networks import (
    AttentionNetwork,
    Head,
    Network,
    export_network,
    run_network,
    torch,
)

SIZE = (36, 52)
SHAPE = (1, 3, *SIZE)
FIVE = ("--classes", "a,b,c,d,e")
IMAGES = example_images(*SIZE)


@pytest.fixture
def run(tmp_path):
    return partial(run_import, tmp_path / "repository")


@pytest.fixture
def served(tmp_path):
    return partial(open_imported, tmp_path / "repository")


def error(result):
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def agreement(labels, expected):
    assert labels.shape == expected.shape
    return (labels == expected).mean()


@pytest.mark.parametrize("dynamic", [(), (0,), (0, 2, 3)], ids=["static", "batch", "all"])
@pytest.mark.parametrize("activation", ["none", "softmax", "log_softmax", "argmax", "argmax_map"])
def test_aligned_corners_are_cut_at_the_logits(run, served, tmp_path, activation, dynamic):
    network = Network(Head(activation))
    path = export_network(network, tmp_path / "net.onnx", SHAPE, dynamic=dynamic)
    size = ("--size", "36x52") if len(dynamic) > 1 else ()
    folder, predict = served(run(path, *FIVE, *IMAGENET, *size))
    found = predict(IMAGES)
    logits = run_network(Network(Head(resize=False)), normalised(IMAGES))
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    expected = run_network(Network(Head("argmax")), normalised(IMAGES))
    assert agreement(found["mask"], expected) >= 0.9999
    assert len(np.unique(expected)) > 2
    assert folder.max_batch_size == 4
    assert folder.labels.names == tuple("abcde")


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
@pytest.mark.parametrize("activation", ["none", "softmax", "argmax"])
def test_half_pixel_resizes_stay_in_the_graph(run, served, tmp_path, activation, opset):
    network = Network(Head(activation, aligned=False))
    path = export_network(network, tmp_path / "net.onnx", SHAPE, dynamic=(0, 2, 3), opset=opset)
    folder, predict = served(run(path, *FIVE, *IMAGENET, "--size", "36x52"))
    found = predict(IMAGES)
    logits = run_network(Network(Head(aligned=False)), normalised(IMAGES))
    assert found["logits"].shape == (3, 5, *SIZE)
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    assert agreement(found["mask"], logits.argmax(1)) >= 0.9999
    stored = onnx.load(str(folder.graph(1)))
    assert opset_of(stored) == max(opset, 17)
    assert stored.ir_version == 8
    told = folder.config.parameters["provenance"].string_value
    assert ("converted to 17" in told) == (opset < 17)


@pytest.mark.slow
def test_the_newer_exporter(run, served, tmp_path):
    network = Network(Head("softmax"))
    # An example of one image would fix the batch.
    path = export_network(
        network, tmp_path / "net.onnx", (2, 3, *SIZE), dynamic=(0, 2, 3), opset=18, dynamo=True
    )
    folder, predict = served(run(path, *FIVE, *IMAGENET, "--size", "36x52"))
    assert predict(IMAGES)["logits"].shape[2:] == (9, 13)
    expected = run_network(Network(Head("argmax")), normalised(IMAGES))
    assert agreement(predict(IMAGES)["mask"], expected) >= 0.9999
    assert folder.max_batch_size == 4


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("activation", "threshold"), [("sigmoid", 0.5), ("sigmoid", 0.8), ("none", -0.4)]
)
def test_one_channel_and_a_threshold(run, served, tmp_path, activation, threshold, aligned):
    head = Head(activation, aligned=aligned, classes=1)
    path = export_network(Network(head), tmp_path / "net.onnx", SHAPE, dynamic=(0,))
    folder, predict = served(run(path, "--classes", "road", "--threshold", threshold, *IMAGENET))
    assert folder.labels.names == ("background", "road")
    found = predict(IMAGES)
    scores = run_network(Network(head), normalised(IMAGES))
    expected = (scores[:, 0] > threshold).astype(np.uint8)
    assert 0.02 < expected.mean() < 0.98
    assert agreement(found["mask"], expected) >= 0.9999
    logits = np.stack([resize_scores(one, *SIZE, aligned=True) for one in found["logits"]])
    assert agreement(logits.argmax(1), expected) >= 0.9999
    assert found["logits"].shape[2:] == ((9, 13) if aligned else SIZE)


def test_labels_that_no_argmax_gives_have_no_logits(run, served, tmp_path):
    network = Network(Head("compare", classes=2))
    path = export_network(network, tmp_path / "net.onnx", SHAPE, dynamic=(0,))
    folder, predict = served(run(path, "--classes", "a,b", *IMAGENET))
    found = predict(IMAGES)
    assert list(found) == ["mask"]
    assert agreement(found["mask"], run_network(network, normalised(IMAGES))) >= 0.9999
    assert "labels only" in folder.config.parameters["provenance"].string_value


def test_small_labels_are_repeated_to_the_image(run, served, tmp_path):
    network = Network(Head("argmax", resize=False))
    path = export_network(network, tmp_path / "net.onnx", SHAPE)
    _, predict = served(run(path, *FIVE, *IMAGENET))
    small = run_network(network, normalised(IMAGES))
    expected = small.repeat(4, axis=1).repeat(4, axis=2)
    assert agreement(predict(IMAGES)["mask"], expected) >= 0.999


@pytest.mark.parametrize("aligned", [True, False])
def test_an_output_smaller_than_the_image(run, served, tmp_path, aligned):
    path = export_network(Network(Head(resize=False)), tmp_path / "net.onnx", SHAPE)
    message = error(run(path, *FIVE, *IMAGENET))
    assert "9x13" in message
    assert "--align-corners or --half-pixel" in message
    flag = "--align-corners" if aligned else "--half-pixel"
    _, predict = served(run(path, *FIVE, *IMAGENET, flag))
    full = run_network(Network(Head(aligned=aligned)), normalised(IMAGES))
    found = predict(IMAGES)
    assert agreement(found["mask"], full.argmax(1)) >= 0.9999
    assert found["logits"].shape[2:] == ((9, 13) if aligned else SIZE)


def test_nhwc(run, served, tmp_path):
    network = Network(Head("softmax"), channels_last=True)
    path = export_network(network, tmp_path / "net.onnx", (1, *SIZE, 3), dynamic=(0,))
    result = run(path, *FIVE, *IMAGENET, "--layout", "NHWC")
    folder, predict = served(result)
    expected = run_network(Network(Head("argmax")), normalised(IMAGES))
    found = predict(IMAGES)
    assert agreement(found["mask"], expected) >= 0.9999
    assert found["logits"].shape == (3, 5, 9, 13)
    # Both transposes of the image cancelled, so the scale went into the convolution.
    operators = [node.op_type for node in onnx.load(str(folder.graph(1))).graph.node]
    assert operators.count("Transpose") == 1
    assert "Mul" not in operators
    assert "--layout NHWC would fit" in error(run(path, *FIVE, *IMAGENET))


def test_bgr_of_0_to_255(run, served, tmp_path):
    """The numbers of Caffe's networks."""
    network = Network(Head())
    path = export_network(network, tmp_path / "net.onnx", SHAPE)
    arguments = (*FIVE, "--channel-order", "bgr", "--range", 255,
                 "--mean", "104.0,116.7,122.7", "--std", "57,58,59")  # fmt: skip
    _, predict = served(run(path, *arguments))
    values = normalised(IMAGES[..., ::-1], (104.0, 116.7, 122.7), (57, 58, 59), 255)
    expected = run_network(network, values).argmax(1)
    assert agreement(predict(IMAGES)["mask"], expected) >= 0.9999


def test_an_image_that_others_read_too(run, served, tmp_path):
    """A skip from the image to the head: the scale cannot go into the first convolution."""

    class Skip(Network):
        def forward(self, image):
            return super().forward(image) + image.mean(1, keepdim=True)

    network = Skip(Head())
    path = export_network(network, tmp_path / "net.onnx", SHAPE)
    arguments = (*FIVE, "--channel-order", "bgr", "--range", 255,
                 "--mean", "104.0,116.7,122.7", "--std", "57,58,59")  # fmt: skip
    _, predict = served(run(path, *arguments))
    values = normalised(IMAGES[..., ::-1], (104.0, 116.7, 122.7), (57, 58, 59), 255)
    assert agreement(predict(IMAGES)["mask"], run_network(network, values).argmax(1)) >= 0.9999


def test_a_batch_that_is_written_into_the_network(run, served, tmp_path):
    class Fixed(Network):
        def logits(self, image):
            bias = torch.linspace(0, 1, 5 * 9 * 13).reshape(1, 5, 9, 13)
            return torch.cat([super().logits(image), bias], 1)[:, :5].reshape(1, 5, 9, 13)

    path = export_network(Fixed(Head()), tmp_path / "net.onnx", SHAPE)
    folder, predict = served(run(path, *FIVE, *IMAGENET))
    assert folder.max_batch_size == 1
    expected = run_network(Fixed(Head("argmax")), normalised(IMAGES[:1]))
    assert agreement(predict(IMAGES[:1])["mask"], expected) >= 0.9999
    assert "dynamic batch" in error(run(path, *FIVE, *IMAGENET, "--max-batch-size", 2))


def test_reshapes_for_one_image_are_freed(run, served, tmp_path):
    class Flat(Network):
        def logits(self, image):
            return super().logits(image).flatten(2).reshape(1, 5, 9, 13)

    path = export_network(Flat(Head()), tmp_path / "net.onnx", SHAPE)
    folder, _ = served(run(path, *FIVE, *IMAGENET))
    assert folder.max_batch_size == 4


@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)], ids=["static", "all"])
def test_a_transformer(run, served, tmp_path, dynamic):
    network = AttentionNetwork()
    path = export_network(network, tmp_path / "net.onnx", SHAPE, dynamic=dynamic, opset=14)
    size = ("--size", "36x52") if dynamic else ()
    folder, predict = served(run(path, *FIVE, *IMAGENET, *size, "--half-pixel"))
    full = torch.nn.functional.interpolate(
        torch.from_numpy(run_network(network, normalised(IMAGES))), SIZE, mode="bilinear"
    )
    assert agreement(predict(IMAGES)["mask"], full.argmax(1).numpy()) >= 0.9999
    assert folder.max_batch_size == 4
    # Nothing is left to compute of shapes.
    operators = {node.op_type for node in onnx.load(str(folder.graph(1))).graph.node}
    assert operators.isdisjoint({"Shape", "Unsqueeze", "ConstantOfShape"})


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("kind", ["transformer", "labels"])
def test_other_precisions(run, served, tmp_path, kind, precision):
    network = AttentionNetwork() if kind == "transformer" else Network(Head("compare", classes=2))
    path = export_network(network, tmp_path / "net.onnx", SHAPE, dynamic=(0,), opset=18)
    photos = write_scenes(tmp_path / "photos", 6)
    classes = (*FIVE, "--half-pixel") if kind == "transformer" else ("--classes", "a,b")
    given = (path, *classes, *IMAGENET)
    result = run(*given, "--precision", precision, "--calibration", photos)
    folder, predict = served(result, f"net_{precision}")
    found = predict(IMAGES)["mask"]
    if (kind, precision) == ("transformer", "int8"):  # its one convolution loses too much
        provenance = folder.config.parameters["provenance"].string_value
        assert "in float: first + last" in provenance
    expected = served(run(*given))[1](IMAGES)["mask"]
    assert agreement(found, expected) > 0.97


def test_half_precision_stays(run, tmp_path):
    path = export_network(Network(Head()), tmp_path / "net.onnx", SHAPE)
    model = onnx.load(str(path))
    half_precision(model)
    onnx.save(model, str(path))
    assert "in half precision already" in error(run(path, *FIVE, *IMAGENET, "--precision", "fp16"))


def test_weights_beside_the_network(run, served, tmp_path):
    path = export_network(Network(Head()), tmp_path / "net.onnx", SHAPE)
    model = onnx.load(str(path))
    path.unlink()
    onnx.save(model, str(path), save_as_external_data=True, size_threshold=0, location="net.data")
    folder, predict = served(run(path, *FIVE, *IMAGENET))
    (tmp_path / "net.data").unlink()
    expected = run_network(Network(Head("argmax")), normalised(IMAGES))
    assert agreement(predict(IMAGES)["mask"], expected) >= 0.9999
    # Beside it the engine's parity has its cache folder.
    assert [p.name for p in folder.graph(1).parent.iterdir() if p.is_file()] == ["model.onnx"]


@pytest.mark.parametrize("opset", [17, 18])
def test_confidence(run, served, tmp_path, opset):
    path = export_network(Network(Head("softmax")), tmp_path / "net.onnx", SHAPE, opset=opset)
    assert "neither mask nor logits" in error(run(path, *FIVE, *IMAGENET, "--head", "confidence"))
    _, predict = served(run(path, *FIVE, *IMAGENET, "--head", "mask,logits,confidence"))
    expected = run_network(Network(Head("softmax")), normalised(IMAGES)).max(1) * 255
    np.testing.assert_allclose(predict(IMAGES)["confidence"], expected, rtol=0, atol=0.51)


def test_half_precision_networks(run, served, tmp_path):
    network = Network(Head())
    path = export_network(network, tmp_path / "net.onnx", SHAPE)
    model = onnx.load(str(path))
    half_precision(model)
    onnx.save(model, str(path))
    folder, predict = served(run(path, *FIVE, *IMAGENET))
    expected = run_network(Network(Head("argmax")), normalised(IMAGES))
    assert agreement(predict(IMAGES)["mask"], expected) >= 0.98
    assert predict(IMAGES)["logits"].dtype == np.float32
    assert folder.max_batch_size == 4


def half_precision(model):
    """All float32 weights, inputs and outputs of a network become float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]


def test_the_second_output_can_be_chosen(run, served, tmp_path):
    class Two(Network):
        def forward(self, image):
            scores = super().forward(image)
            return scores[:, :3], scores

    path = export_network(Two(Head()), tmp_path / "net.onnx", SHAPE, outputs=("aux", "main"))
    assert "3 classes, and 5 are named" in error(run(path, *FIVE, *IMAGENET))
    message = error(run(path, *FIVE, *IMAGENET, "--output", "x"))
    assert "is not an output of the network: expected one of aux, main" in message
    result = run(path, *FIVE, *IMAGENET, "--output", "main")
    _, predict = served(result)
    assert "left out: aux" in result.stderr
    expected = run_network(Network(Head("argmax")), normalised(IMAGES))
    assert agreement(predict(IMAGES)["mask"], expected) >= 0.9999


def test_facts_travel_with_the_model(run, served, tmp_path):
    path = export_network(Network(Head()), tmp_path / "net.onnx", SHAPE)
    names = tmp_path / "names.txt"
    names.write_text("road\nsky\ncar, red\nbus\ntree\n")
    result = run(path, "--classes", names, "--palette", "#010203 #111213 #212223 #313233 #414243",
                 *IMAGENET, "--name", "mine", "--provenance", "a test", "--accuracy", "1 %",
                 "--head", "mask")  # fmt: skip
    folder, predict = served(result, "mine")
    assert folder.labels.names[2] == "car, red"
    assert folder.labels.colors[1] == (0x11, 0x12, 0x13)
    assert list(predict(IMAGES)) == ["mask"]
    told = folder.config.parameters["provenance"].string_value
    assert told.startswith("a test; imported from net.onnx sha256 ")
    assert "verified: 100" in told or "verified: scores" in told or "equal labels" in told
    metadata = {p.key: p.value for p in onnx.load(str(folder.graph(1))).metadata_props}
    assert metadata["provenance"] == told
    assert "fold_normalisation" in metadata["passes"].split(",")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (IMAGENET, "--classes"),
        (("--classes", "a,b,c", *IMAGENET), "5 classes, and 3 are named"),
        (("--classes", "a,b,c,d,d", *IMAGENET), "each name once"),
        (("--dataset", "citys", *IMAGENET), "5 classes, and 19 are named"),
        (("--classes", "absent.txt", *IMAGENET), "absent.txt"),
        ((*FIVE, *IMAGENET, "--palette", "#010203"), "1 colours for 5"),
        ((*FIVE, *IMAGENET, "--threshold", "0.5"), "leave it out"),
        ((*FIVE, *IMAGENET, "--size", "64x64"), "leave --size out"),
        ((*FIVE, *IMAGENET, "--size", "big"), "HEIGHTxWIDTH"),
        ((*FIVE, *IMAGENET, "--layout", "CHWN"), "NCHW or NHWC"),
        ((*FIVE, *IMAGENET, "--channel-order", "gbr"), "rgb or bgr"),
        ((*FIVE, *IMAGENET, "--head", "boxes"), "--head"),
        ((*FIVE, "--mean", "0,0", "--std", "1,1,1", "--range", "1"), "three numbers"),
        ((*FIVE, "--mean", "0,0,nan", "--std", "1,1,1", "--range", "1"), "finite"),
        ((*FIVE, "--mean", "0,0,0", "--std", "1,0,1", "--range", "1"), "above 0"),
        ((*FIVE, "--mean", "0,0,0", "--std", "1,1,1", "--range", "2"), "1 or 255"),
        ((*FIVE, "--mean", "123,116,103", "--std", "58,57,57", "--range", "1"), "--range 255"),
        ((*FIVE, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--range", "255"), "--range 1"),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_a_remedy(run, tmp_path, arguments, message):
    path = export_network(Network(Head()), tmp_path / "net.onnx", SHAPE)
    assert message in error(run(path, *arguments))
    assert not (tmp_path / "repository").exists()


def write(path, nodes, inputs, outputs, opsets=(("", 17),)):
    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs])
    imports = [helper.make_opsetid(*o) for o in opsets]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


IMAGE = ("x", [1, 3, 8, 8])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([IMAGE, ("scale", [1])], "2 inputs (x, scale)"),
        ([("x", [1, 4, 8, 8])], "4 channels"),
        ([("x", [1, 1, 8, 8])], "one mean and one deviation"),
        ([("x", [1, 8, 8, 1])], "8 channels; with 1 at the other end, --layout NHWC would fit"),
        ([("x", [2, 3, 8, 8])], "2 images at a time"),
        ([("x", [3, 8, 8])], "3 dimensions"),
        ([("x", [1, 3, "h", "w"])], "--size"),
        ([("x", [1, 3, 100_000, 100_000])], "pixels"),
        ([("x", [1, 3, 8, 8], TensorProto.INT64)], "INT64"),
    ],
)
def test_networks_with_other_inputs_are_refused(run, tmp_path, inputs, message):
    kind = inputs[0][2] if len(inputs[0]) > 2 else TensorProto.FLOAT
    node = helper.make_node("Identity", ["x"], ["y"])
    path = write(tmp_path / "net.onnx", [node], inputs, [("y", None, kind)])
    assert message in error(run(path, "--classes", "a,b,c", *IMAGENET))


@pytest.mark.parametrize(
    ("node", "shape", "message"),
    [
        (helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0), None, "[1, 3]"),
        (helper.make_node("Deform", ["x"], ["y"], domain="elsewhere"), None, "elsewhere.Deform"),
    ],
)
def test_networks_with_other_outputs_are_refused(run, tmp_path, node, shape, message):
    path = write(tmp_path / "net.onnx", [node], [IMAGE], [("y", shape)],
                 (("", 17), ("elsewhere", 1)))  # fmt: skip
    assert message in error(run(path, "--classes", "a,b,c", *IMAGENET))


def test_more_classes_than_two_bytes_hold_are_refused(run, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {i}\n" for i in range(65_536)))
    path = write(tmp_path / "net.onnx", [helper.make_node("Identity", ["x"], ["y"])], [IMAGE],
                 [("y", None)])  # fmt: skip
    assert "65536 classes: expected at most 65535" in error(
        run(path, "--classes", names, *IMAGENET)
    )


def test_labels_beyond_the_named_classes_are_refused(run, tmp_path):
    network = Network(Head("compare", classes=2))

    class More(Network):
        def forward(self, image):
            return super().forward(image) * 7

    path = export_network(More(network.head), tmp_path / "net.onnx", SHAPE)
    assert "the class 7, but 2 are named" in error(run(path, "--classes", "a,b", *IMAGENET))
    assert not (tmp_path / "repository").exists()


def test_damaged_files_are_refused_by_name(run, tmp_path):
    path = export_network(Network(Head()), tmp_path / "net.onnx", SHAPE)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [content[:length] for length in (0, 1, 7, 100, len(content) // 2, len(content) - 1)]
    damaged += [random.bytes(200) for _ in range(5)]
    for number, part in enumerate(damaged):
        path.write_bytes(part)
        message = error(run(path, *FIVE, *IMAGENET))
        assert "net.onnx" in message, number
    assert "absent.onnx does not exist" in error(run(tmp_path / "absent.onnx", *FIVE, *IMAGENET))


def test_changed_bytes_never_raise_anything_else(tmp_path):
    path = export_network(Network(Head("softmax")), tmp_path / "net.onnx", SHAPE, dynamic=(0, 2, 3))
    content = path.read_bytes()
    options = ImportOptions(InputFormat((0, 0, 0), (1, 1, 1), 1), 5, SIZE)
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(120):
        changed = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 6)):
            changed[place] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            import_network(read_network(path), options)
        except ExportError:
            refused += 1
    assert refused > 40


def test_weights_outside_of_the_networks_folder_are_refused(run, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(5 * 3 * 4))
    folder = tmp_path / "there"
    folder.mkdir()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[5, 3, 1, 1])
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    path = write(folder / "net.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], [IMAGE],
                 [("y", None)])  # fmt: skip
    model = onnx.load(str(path))
    model.graph.initializer.append(weight)
    path.write_bytes(model.SerializeToString())
    assert "net.onnx" in error(run(path, *FIVE, *IMAGENET))


def test_scores_that_are_no_numbers_are_refused(run, tmp_path):
    network = Network(Head())
    list(network.parameters())[-1].data[0] = float("nan")
    path = export_network(network, tmp_path / "net.onnx", SHAPE)
    message = error(run(path, *FIVE, *IMAGENET))
    assert "does not give numbers: Conv" in message
    assert "is not finite) " not in message
