"""The engine on a real GPU; collected only where ONNX Runtime has CUDA (benchmarks/gpu.sh)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.engines.node_profile import profile_graph
from benchmarks.engines.subject import Case
from serving.engines.accelerated import AcceleratedEngine
from serving.engines.acceleration import Acceleration
from serving.engines.onnxruntime import CUDA, OnnxEngine
from serving.imaging.restore import model_labels
from serving.models.embedded import open_on_gpu
from serving.models.repository import ModelFolder, read_model

REPOSITORY = Path(__file__).parents[3] / "model_repository"

if CUDA in onnxruntime.get_available_providers():

    @pytest.fixture(scope="module")
    def folder() -> ModelFolder:
        return read_model(REPOSITORY / "icnet")

    @pytest.fixture(scope="module")
    def engine(folder: ModelFolder) -> AcceleratedEngine:
        engine = open_on_gpu(folder, folder.versions[-1], Acceleration())
        engine.warm()
        return engine

    def images(n: int) -> np.ndarray:
        return np.random.default_rng(n).integers(0, 256, (n, 352, 480, 3), np.uint8)

    def test_it_answers_as_the_cpu_does(engine: AcceleratedEngine, folder: ModelFolder) -> None:
        here = OnnxEngine(
            folder.graph(folder.versions[-1]), instances=1, threads=4, max_batch_size=4
        )
        for n in (1, 3, 4, 1):
            batch = images(n)
            expected = here.run(batch).logits
            found = engine.run(batch).logits
            assert found is not None
            assert expected is not None
            assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
            labels = engine.run_labels(batch).mask
            assert labels is not None
            size = engine.spec.size
            for one, logits in zip(labels, expected, strict=True):
                assert (one == model_labels(logits, size)).mean() > 0.999

    @pytest.mark.parametrize("output", ["logits", "mask"])
    def test_nothing_leaves_the_gpu_between_input_and_output(
        folder: ModelFolder, output: str
    ) -> None:
        graph = folder.graph(folder.versions[-1])
        case = Case("icnet", None, 11, 352, 480, "fp16", 2, graph, output)
        profile = profile_graph(case, "cuda", Acceleration())
        assert profile.outside(CUDA) == profile.copies() == ()

    def test_runs_are_captured(engine: AcceleratedEngine) -> None:
        lane = engine._lanes.get()
        engine._lanes.put(lane)
        assert all(session._graphs for session in lane.sessions.values())
