"""Every operator in PyTorch against MXNet: outputs, gradients, running statistics."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.lowering import operators  # noqa: E402
from export.symbols.graph import Entry, Graph, Node, read_symbol  # noqa: E402
from export.symbols.params import Parameters, read_params  # noqa: E402
from tests.support.torch_gradients import measure_differences, read_pass, run_pass  # noqa: E402
from training.trainers.symbol_module import SymbolModule  # noqa: E402
from training.trainers.torch_operators import (  # noqa: E402
    Call,
    UnsupportedOperators,
    execute,
    unsupported,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from operator_gradients import dtype_of, read_cases  # noqa: E402

from tests.support.operator_cases import is_of  # noqa: E402

CASES = [(group, name) for group, cases in read_cases().items() for name in cases]
# Operators of the exporter that cannot be executed here, each with the reason.
LEFT_OUT: dict[str, str] = {}
# Operators without a case of their own, each with the reason.
UNTRIED: dict[str, str] = {
    "_contrib_BatchNormWithReLU": "MXNet runs it with oneDNN alone, which these tests switch off",
    "amp_cast": "MXNet takes it out of the symbols that it saves",
    "_contrib_SyncBatchNorm": "MXNet trains it on GPUs alone; test_operators has its forward pass",
}
# By case or family. MXNet 1.9 writes the data's gradient over the incoming one before it reads that
# for the slopes; multiplies selu's result by its factor again; and divides a map in other rows in
# the backward pass of SoftmaxActivation than in the forward one.
WRONG_IN_MXNET = {
    "prelu": "grad:prelu_gamma",
    "own_slope": "grad:slope",
    "leaky_selu": "grad:data",
    "softmax_instance_map": "grad:data",
}


@pytest.fixture(scope="module")
def passes(run_script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXNet's passes of all cases."""
    folder = tmp_path_factory.mktemp("operators")
    run_script("operator_gradients", folder)
    return folder


def test_knows_every_operator_of_the_exporter() -> None:
    assert set(unsupported(operators.LOWERINGS)) == set(LEFT_OUT)


def test_every_operator_has_a_case(passes: Path) -> None:
    graphs = [read_symbol(path) for path in passes.glob("*/*.json")]
    tried = {node.op for graph in graphs for _, node in graph.operators()}
    assert set(operators.LOWERINGS) - tried == set(UNTRIED)


@pytest.mark.parametrize(("group", "name"), CASES)
def test_equals_mxnet(group: str, name: str, passes: Path) -> None:
    dtype = dtype_of(name)
    bound = 1e-5 if dtype == "float32" else 1e-6
    expected = read_pass(name, passes / group, dtype)
    differences = measure_differences(run_pass(name, passes / group, dtype), expected)
    for known, gradient in WRONG_IN_MXNET.items():
        if is_of(name, (known,)):
            differences.pop(gradient)
    assert max(differences.values()) <= bound, differences


@pytest.mark.parametrize(("group", "name"), CASES)
def test_stays_on_its_device(group: str, name: str, passes: Path) -> None:
    """``meta`` computes shapes only, and refuses tensors of another device like a GPU does."""
    folder = passes / group
    graph = read_symbol(folder / f"{name}.json")
    module = SymbolModule(graph, read_params(folder / f"{name}.params")).to("meta").train()
    data = torch.empty(np.load(folder / f"{name}-data.npy").shape, device="meta")
    given = read_pass(name, folder, dtype_of(name))
    label = torch.empty(given["label"].shape, device="meta") if "label" in given else None
    (output,) = module(data.requires_grad_(), label)
    assert (output.device.type, output.shape) == ("meta", given["output:0"].shape)
    if output.requires_grad:
        output.sum().backward()


def call(op: str, *inputs: torch.Tensor, training: bool = True, **attrs: str) -> Call:
    return Call(Node(op, "node", attrs=attrs), inputs, training)


def test_dropout_keeps_the_mean_and_is_idle_in_inference() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 1, 200, 200)
    dropped = execute(call("Dropout", x, p="0.25"))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(execute(call("Dropout", x, training=False, p="0.25")), x)


def test_an_output_layer_needs_labels_in_training_only() -> None:
    scores = torch.randn(1, 3, 2, 2)
    probabilities = execute(call("SoftmaxOutput", scores, training=False, multi_output="True"))
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match=r"node \(SoftmaxOutput\) learns from labels"):
        execute(call("SoftmaxOutput", scores, multi_output="True"))


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("LeakyReLU", {"act_type": "silu"}, "act_type 'silu' is not known"),
        ("Activation", {"act_type": "mish"}, "act_type 'mish' is not known"),
        ("SoftmaxOutput", {"out_grad": "True", "multi_output": "True"}, "out_grad=True"),
        ("Pooling", {"pool_type": "median", "kernel": "(2, 2)"}, "pooling of type 'median'"),
        ("norm", {"ord": "3"}, "norm of order 3"),
        ("LRN", {"nsize": "4"}, "an even number of channels, 4"),
        ("Cast", {"dtype": "float16"}, "Cast to float16"),
        ("Dropout", {"mode": "always"}, "active at inference"),
    ],
)
def test_refuses_by_node_and_attribute(op: str, attrs: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedOperators, match=rf"node \({op}\): .*{message}"):
        execute(call(op, torch.zeros(1, 3, 4, 4), **attrs))


def test_unknown_operators_are_all_named() -> None:
    nodes = (Node("null", "data"), Node("Correlation", "a", (Entry(0),)),
             Node("ROIPooling", "b", (Entry(1),)))  # fmt: skip
    with pytest.raises(UnsupportedOperators, match="Correlation, ROIPooling"):
        SymbolModule(Graph(nodes, (Entry(2),)), Parameters({}, {}))


def modulated(groups: int, parts: int, stride: int) -> Call:
    """A modulated deformable convolution whose taps lie inside, at the border and outside."""
    torch.manual_seed(groups + 2 * parts + 4 * stride)
    size = -(-5 // stride)
    shapes = [(1, 4, 5, 5), (1, 18 * groups, size, size), (1, 9 * groups, size, size),
              (6, 4 // parts, 3, 3), (6,)]  # fmt: skip
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    attrs = {"kernel": "(3, 3)", "pad": "(1, 1)", "stride": f"({stride}, {stride})",
             "num_filter": "6", "num_group": str(parts),
             "num_deformable_group": str(groups)}  # fmt: skip
    return call("_contrib_ModulatedDeformableConvolution", *inputs, **attrs)


@pytest.mark.parametrize(("groups", "parts", "stride"), [(1, 1, 1), (2, 1, 2), (1, 2, 1)])
def test_modulated_gradients_are_those_of_differences(groups: int, parts: int, stride: int) -> None:
    """MXNet has them on GPUs alone; ``test_random_attributes`` compares the forward pass."""
    made = modulated(groups, parts, stride)
    assert torch.autograd.gradcheck(
        lambda *inputs: execute(replace(made, inputs=inputs)), made.inputs
    )


def test_computes_what_mxnet_does_not_train(passes: Path) -> None:
    folder = passes / "forward"
    names = sorted(path.name.removesuffix("-data.npy") for path in folder.glob("*-data.npy"))
    assert {name[:9] for name in names} >= {"modulated", "leaky_rre", "argmax_ch"}
    for name in names:
        graph, data = read_symbol(folder / f"{name}.json"), np.load(folder / f"{name}-data.npy")
        module = SymbolModule(graph, read_params(folder / f"{name}.params")).eval()
        with torch.no_grad():
            (found,) = module(torch.from_numpy(data))
        expected = np.load(folder / f"{name}-output.npy")
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=atol)


def test_rrelu_draws_slopes_in_training_only() -> None:
    x = -torch.ones(1, 1, 50, 50)
    options = {"act_type": "rrelu", "lower_bound": "0.25", "upper_bound": "0.75"}
    drawn = execute(call("LeakyReLU", x, **options))
    assert -0.75 <= drawn.min() < -0.7
    assert -0.3 < drawn.max() <= -0.25
    assert torch.allclose(execute(call("LeakyReLU", x, training=False, **options)), x / 2)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_positions_that_are_nowhere_read_zero(wrong: float) -> None:
    """As in MXNet; never anything outside of the map's memory."""
    image, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    found = []
    for offset in (wrong, 100.0):
        offsets = torch.zeros(1, 18, 5, 5)
        offsets[0, 0, 2, 2] = offsets[0, 7, 1, 1] = offset
        attrs = {"kernel": "(3, 3)", "pad": "(1, 1)", "num_filter": "3"}
        found.append(
            execute(call("_contrib_DeformableConvolution", image, offsets, weight, **attrs))
        )
    assert torch.equal(*found)
