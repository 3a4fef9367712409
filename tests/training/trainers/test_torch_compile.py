"""``--compile`` takes the same step as without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.symbols.graph import read_symbol  # noqa: E402
from training.loader import Batch  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.trainers.symbol_module import parse_nodes  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402

CLASSES, HEIGHT, WIDTH = 11, 64, 96


def step(symbol: Path, *more: str) -> tuple[float, TorchLearner]:
    flags = f"--trainer torch --no-cuda --symbol {symbol} --crop-size {HEIGHT}x{WIDTH}"
    learner = TorchLearner(parse_options([*flags.split(), "--batch-size", "2", *more]), CLASSES)
    with np.load(symbol.parent / "batch.npz") as file:
        batch = Batch(file["images"], file["labels"], ("a", "b"))
        learner.start(file["weights"])
    return learner.step(batch, 0.01), learner


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_a_compiled_step_equals_an_eager_one(steady_symbol: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (expected, eager), (loss, compiled) = step(steady_symbol), step(steady_symbol, "--compile")
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 1
    assert not counted["graph_break"]
    assert loss == pytest.approx(expected, rel=1e-5)
    gradients = [
        torch.cat([weight.grad.flatten() for weight in learner.module.weights.values()])
        for learner in (eager, compiled)
    ]
    # As one vector: float32 with its sums in another order.
    apart = torch.linalg.vector_norm(gradients[1] - gradients[0])
    assert float(apart) <= 1e-3 * float(torch.linalg.vector_norm(gradients[0]))
    for one, other in zip(eager.module.buffers(), compiled.module.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_parsed_nodes_say_what_the_symbol_does(steady_symbol: Path) -> None:
    graph = read_symbol(steady_symbol)
    for node, parsed in zip(graph.nodes, parse_nodes(graph).nodes, strict=True):
        assert (node.op, node.name, node.inputs, dict(node.attrs)) == (
            parsed.op, parsed.name, parsed.inputs, dict(parsed.attrs)
        )  # fmt: skip
        for key in ("kernel", "stride", "pad", "dilate", "absent"):
            assert node.integers(key, (7,)) == parsed.integers(key, (7,))
