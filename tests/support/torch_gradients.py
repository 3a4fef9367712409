"""PyTorch's pass of a symbol beside the one that ``mxnet_gradients`` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from export.symbols.graph import read_symbol
from export.symbols.params import read_params
from training.trainers.symbol_module import SymbolModule

Arrays: TypeAlias = Mapping[str, npt.NDArray[np.floating[Any]]]


def read_pass(name: str, folder: Path, dtype: str) -> Arrays:
    """MXNet's arrays: ``output:I``, ``grad:NAME``, ``state:NAME``, and what it was given."""
    with np.load(folder / f"{name}-{dtype}.npz") as file:
        return {key: file[key] for key in file.files}


def run_pass(name: str, folder: Path, dtype: str) -> Arrays:
    """PyTorch's, under the same names."""
    given = read_pass(name, folder, dtype)
    kind = torch.from_numpy(np.zeros(1, dtype)).dtype
    graph = read_symbol(folder / f"{name}.json")
    module = SymbolModule(graph, read_params(folder / f"{name}.params")).to(kind)
    module.train()
    data = torch.from_numpy(np.load(folder / f"{name}-data.npy")).to(kind).requires_grad_()
    label = torch.from_numpy(given["label"]) if "label" in given else None
    outputs = module(data, label)
    heads = [torch.from_numpy(given[f"head:{i}"]).to(kind) for i in range(len(outputs))]
    if any(output.requires_grad for output in outputs):  # BlockGrad leaves none
        torch.autograd.backward(outputs, heads)
    found = {f"output:{i}": output.detach().numpy() for i, output in enumerate(outputs)}
    found |= {f"state:{key}": value.numpy() for key, value in module.named_buffers()}
    for key, weight in {"data": data, **module.weights}.items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        found[f"grad:{key}"] = gradient.numpy()
    return found


def measure_differences(found: Arrays, expected: Arrays) -> dict[str, float]:
    """Largest difference of each output, gradient and running statistic, relative to the array's
    largest value.

    A gradient that is zero but for rounding is measured on a millionth of the largest gradient's
    scale.
    """
    compared = [key for key in expected if not key.startswith(("head:", "label"))]
    assert set(compared) <= set(found), set(compared) - set(found)
    scale = max(_largest(expected[key]) for key in compared if key.startswith("grad:"))
    differences = {}
    for key in compared:
        assert found[key].shape == expected[key].shape, key
        floor = 1e-6 * scale if key.startswith("grad:") else 0.0
        reference = max(_largest(expected[key]), floor, 1e-300)
        differences[key] = _largest(found[key] - expected[key]) / reference
    return differences


def measure_distance(found: Arrays, expected: Arrays) -> float:
    """All gradients as one vector: the length of the difference, relative."""
    names = [key for key in expected if key.startswith("grad:")]
    apart = sum(float(((found[key] - expected[key]) ** 2).sum()) for key in names)
    length = sum(float((expected[key] ** 2).sum()) for key in names)
    return float(np.sqrt(apart / length))


def _largest(array: npt.NDArray[np.floating[Any]]) -> float:
    return float(np.abs(array).max(initial=0.0))
