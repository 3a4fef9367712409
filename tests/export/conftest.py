"""A small network like ICNet in structure, and a way to run MXNet outside this process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto

from export.symbols.graph import Entry, Graph, Node
from export.symbols.params import Array, Parameters, random_params

ROOT = Path(__file__).parents[2]


class GraphWriter:
    """Adds nodes one by one; an entry is what ``add`` returned."""

    def __init__(self) -> None:
        self.nodes = [Node("null", "data")]

    def add(self, op: str, name: str, *inputs: int, variables: str = "", **attrs: object) -> int:
        """Adds an operator after its own variables, ``name_<variable>`` each."""
        entries = [Entry(i) for i in inputs]
        for variable in variables.split():
            entries.append(Entry(len(self.nodes)))
            self.nodes.append(Node("null", f"{name}_{variable}"))
        texts = {key: str(value) for key, value in attrs.items()}
        self.nodes.append(Node(op, name, tuple(entries), texts))
        return len(self.nodes) - 1

    def convolution(
        self, name: str, source: int, filters: int, kernel: int = 3, **attrs: object
    ) -> int:
        options = {
            "kernel": (kernel, kernel),
            "num_filter": filters,
            "no_bias": True,
            "pad": (kernel // 2, kernel // 2),
            **attrs,
        }
        names = "weight" if options["no_bias"] else "weight bias"
        return self.add("Convolution", name, source, variables=names, **options)

    def batch_norm(self, name: str, source: int, **attrs: object) -> int:
        options = {"eps": 1e-5, "fix_gamma": False, **attrs}
        names = "gamma beta running_mean running_var"
        return self.add("BatchNorm", name, source, variables=names, **options)

    def resize(self, name: str, source: int, height: int, width: int) -> int:
        return self.add("_contrib_BilinearResize2D", name, source, height=height, width=width)

    def graph(self, *heads: int) -> Graph:
        return Graph(tuple(self.nodes), tuple(Entry(h) for h in heads))


def write_network(height: int, width: int, classes: int = 5) -> Graph:
    """Two branches at 1/2 and 1/4, their sum, a head at 1/2 resized to the image, and an
    auxiliary head at 1/4."""
    g = GraphWriter()
    half = g.convolution("large_conv", 0, 8, stride=(2, 2))
    half = g.add("Activation", "large_relu", g.batch_norm("large_bn", half), act_type="relu")
    small = g.resize("shrink", 0, height // 2, width // 2)
    small = g.batch_norm("small_bn", g.convolution("small_conv", small, 8, stride=(2, 2)))
    small = g.add("relu", "small_relu", small)
    pooled = g.add("_contrib_AdaptiveAvgPooling2D", "pool", small, output_size=3)
    pooled = g.resize("unpool", g.convolution("pool_conv", pooled, 4, 1), height // 4, width // 4)
    small = g.add("Concat", "pyramid", small, pooled, num_args=2, dim=1)
    small = g.add("Dropout", "drop", g.convolution("merge", small, 8), p=0.1)
    auxiliary = g.convolution("aux", small, classes, 1)
    up = g.resize("grow", small, height // 2, width // 2)
    fused = g.add("elemwise_add", "sum", half, up)
    score = g.convolution("score", fused, classes, 1, no_bias=False)
    full = g.resize("full", score, height, width)
    return g.graph(full, score, auxiliary)


def write_deformable_network(height: int, width: int, classes: int = 5) -> Graph:
    """A deformable convolution at 1/2 with two groups of offsets, its batch norm, a classifier."""
    g = GraphWriter()
    base = g.convolution("base", 0, 8, stride=(2, 2))
    offset = g.convolution("offset", base, 36, no_bias=False)
    bent = g.add("_contrib_DeformableConvolution", "deform", base, offset, num_filter=8,
                 variables="weight", kernel=(3, 3), pad=(1, 1), num_deformable_group=2,
                 no_bias=True)  # fmt: skip
    score = g.convolution("score", g.batch_norm("norm", bent), classes, 1, no_bias=False)
    return g.graph(g.resize("full", score, height, width))


@pytest.fixture
def make_deformable_network() -> Callable[..., Graph]:
    """A small network that needs opset 19, or sampling."""
    return write_deformable_network


@pytest.fixture
def writer() -> GraphWriter:
    """An empty graph with the variable ``data`` at index 0."""
    return GraphWriter()


@pytest.fixture
def make_network() -> Callable[..., Graph]:
    """The small network at any size that is a multiple of four."""
    return write_network


@pytest.fixture
def make_params() -> Callable[[Graph, int, int], Parameters]:
    """Random parameters whose batch norms are not neutral."""

    def perturbed(graph: Graph, height: int, width: int) -> Parameters:
        generator = np.random.default_rng(7)
        plain = random_params(graph, height, width, seed=3)

        def vary(array: Array) -> Array:
            if array.ndim != 1:
                return array
            return (array + generator.uniform(-0.4, 0.4, array.shape)).astype(np.float32)

        return Parameters(
            {name: vary(a) for name, a in plain.arguments.items()},
            {name: vary(a) for name, a in plain.auxiliary.items()},
        )

    return perturbed


@pytest.fixture
def run_onnx() -> Callable[[ModelProto, Array], list[Array]]:
    """All outputs of a model with one input, on ONNX Runtime."""

    def run(model: ModelProto, values: Array) -> list[Array]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: values})
        return outputs

    return run


@pytest.fixture(scope="session")
def run_mxnet() -> Callable[..., str]:
    """Runs Python in a subprocess where MXNet and the tests can be imported; returns its stdout."""
    for package in ("mxnet", "gluoncv"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra 'training')")

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-W", "ignore", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
