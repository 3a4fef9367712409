"""The published ICNet, from its symbol to ONNX Runtime, against MXNet's forward pass."""

import numpy as np
import pytest

from export.errors import VerificationFailed
from export.passes.build import build_model
from export.passes.onnx_graph import OnnxGraph
from export.symbols.find import PUBLISHED
from export.symbols.graph import read_symbol
from export.symbols.params import Parameters
from export.symbols.shapes import retarget
from export.verify import verify

SIZE = (64, 96)


@pytest.mark.slow
def test_equals_mxnet(make_params, run_mxnet):
    graph = retarget(read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz"), *SIZE)
    parameters = make_params(graph, *SIZE)
    model = build_model(graph, parameters, *SIZE)
    result = verify(model, graph, parameters, *SIZE)
    assert result.relative <= 1e-4
    assert result.agreement >= 0.9999
    assert result.images == 3


def test_a_wrong_graph_is_noticed(make_network, make_params, run_mxnet):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    model = build_model(graph, parameters, *SIZE)
    weights = OnnxGraph(model)
    weights.set_constant("score_bias", weights.constant("score_bias") + 1)
    with pytest.raises(VerificationFailed, match="disagree"):
        verify(model, graph, parameters, *SIZE)


def test_logits_that_are_no_numbers_are_noticed(make_network, make_params, run_mxnet):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    model = build_model(graph, parameters, *SIZE, heads=("logits",))
    weights = OnnxGraph(model)
    weights.set_constant("score_bias", np.array([0, 0, 0, 0, np.nan], np.float32))
    with pytest.raises(VerificationFailed, match=r"within nan .*--no-verify"):
        verify(model, graph, parameters, *SIZE)


def test_labels_alone_judge_deformable_networks(
    make_network, make_deformable_network, make_params, run_mxnet
):
    """Logits of 1.01 of MXNet's: the same labels, and ten times what is refused of others."""
    for make in (make_network, make_deformable_network):
        graph = make(*SIZE)
        parameters = make_params(graph, *SIZE)
        larger = {
            name: (array * 1.01).astype(np.float32) if name.startswith("score") else array
            for name, array in parameters.arguments.items()
        }
        model = build_model(graph, Parameters(larger, parameters.auxiliary), *SIZE)
        if make is make_network:
            with pytest.raises(VerificationFailed, match="disagree"):
                verify(model, graph, parameters, *SIZE)
        else:
            result = verify(model, graph, parameters, *SIZE)
            assert result.relative == pytest.approx(0.01, rel=0.01)
            assert "(bounds: " in str(result)
