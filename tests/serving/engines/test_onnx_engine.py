"""The embedded engine on small hand-made graphs of the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from serving.engines.graph import cut_graph
from serving.engines.onnxruntime import OnnxEngine
from serving.errors import InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import model_labels
from tests.support.contract_graph import make_graph


def open_engine(tmp_path: Path, model: onnx.ModelProto, **options: int) -> OnnxEngine:
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    return OnnxEngine(
        path,
        instances=options.get("instances", 1),
        threads=options.get("threads", 1),
        max_batch_size=options.get("max_batch_size", 2),
    )


def image(n: int = 2) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (n, 4, 6, 3), np.uint8)


def test_logits_are_taken_where_the_graph_has_them(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph())
    assert engine.spec.size == Size(4, 6)
    assert (engine.spec.num_classes, engine.spec.logits_size) == (3, Size(4, 6))
    assert engine.spec.precision == "fp32"
    engine.warm()
    batch = image()
    prediction = engine.run(batch)
    assert prediction.mask is None
    assert prediction.logits is not None
    np.testing.assert_array_equal(prediction.logits, batch.transpose(0, 3, 1, 2))
    labels = model_labels(prediction[1].logits, Size(4, 6))
    np.testing.assert_array_equal(labels, batch[1].argmax(-1))
    engine.close()


def test_a_graph_with_a_mask_alone_is_served_too(tmp_path: Path) -> None:
    engine = open_engine(tmp_path, make_graph(("mask",)), instances=2)
    assert engine.spec.logits_size is None
    batch = image()
    prediction = engine.run(batch)
    assert prediction.logits is None
    np.testing.assert_array_equal(prediction.mask, batch.argmax(-1))


def test_cutting_drops_the_nodes_and_weights_that_nobody_needs() -> None:
    whole = make_graph()
    cut = cut_graph(whole, "logits")
    assert [node.op_type for node in cut.graph.node] == ["Cast", "Transpose", "Mul"]
    assert [item.name for item in cut.graph.initializer] == ["one"]
    assert [item.name for item in cut.graph.output] == ["logits"]
    assert len(whole.graph.node) == 6
    onnx.checker.check_model(cut)
    with pytest.raises(ValueError, match="mask, logits"):
        cut_graph(whole, "depth")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (make_graph(channels=4), r"UINT8 \[N,H,W,3\]"),
        (make_graph(datatype=TensorProto.FLOAT), "FLOAT"),
        (make_graph(height="H"), "static"),
        (make_graph(outputs=()), "needed: logits or mask"),
    ],
    ids=["four channels", "floats", "dynamic size", "no outputs"],
)
def test_graphs_beside_the_contract_are_refused_by_name(
    tmp_path: Path, model: onnx.ModelProto, text: str
) -> None:
    with pytest.raises(InvalidModel, match=text):
        open_engine(tmp_path, model)


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(InvalidModel, match=r"model\.onnx"):
        OnnxEngine(path, instances=1, threads=1, max_batch_size=1)
