"""Operators with attributes drawn at random, against MXNet. Run as a script, this file is MXNet's
half."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.operator_cases import draw_cases

SIZE = (13, 17)
CASES = draw_cases()


@pytest.fixture(scope="module")
def mxnet_results(tmp_path_factory, run_mxnet):
    folder = tmp_path_factory.mktemp("operators")
    run_mxnet(__file__, folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_equals_mxnet(name, mxnet_results, run_onnx):
    from onnx import checker

    from export.lowering.convert import convert
    from export.symbols.graph import read_symbol
    from export.symbols.params import read_params

    graph = read_symbol(mxnet_results / f"{name}.json")
    parameters = read_params(mxnet_results / f"{name}.params")
    data = np.load(mxnet_results / f"{name}-data.npy")
    expected = np.load(mxnet_results / f"{name}-output.npy")
    model = convert(graph, parameters, *SIZE)
    checker.check_model(model, full_check=True)
    declared = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert declared[1:] == list(expected.shape[1:])
    (found,) = run_onnx(model, data)
    assert found.shape == expected.shape
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol)
    # A batch of another size gives each image what it has alone.
    (alone,) = run_onnx(model, data[1:])
    np.testing.assert_allclose(alone, expected[1:], rtol=1e-4, atol=atol)


def test_attributes_that_mxnet_writes_are_the_operators_own(mxnet_results):
    from export.symbols.graph import read_symbol

    for path in mxnet_results.glob("*.json"):
        hidden = {n.op: n.user_attrs for _, n in read_symbol(path).operators() if n.user_attrs}
        assert not hidden, path.name


if __name__ == "__main__":
    from tests.support.mxnet_operators import write_cases

    write_cases(CASES, Path(sys.argv[1]), SIZE)
