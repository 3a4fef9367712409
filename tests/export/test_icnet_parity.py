"""The published ICNet, from its symbol to ONNX Runtime, against MXNet's forward pass."""

import pytest

from export.build import build_model
from export.errors import VerificationFailed
from export.onnx_graph import OnnxGraph
from export.retarget import retarget
from export.symbol import read_symbol
from export.symbol_lookup import PUBLISHED
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
