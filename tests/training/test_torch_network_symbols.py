"""Networks of other people's kinds in PyTorch against MXNet: outputs, gradients, statistics."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from tests.support.torch_gradients import measure_distance, read_pass, run_pass  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from network_symbol_gradients import FLOAT32, NETWORKS, UNTRAINABLE  # noqa: E402

# Where a whole network is in float32, rounding grows from layer to layer.
BOUNDS = {"float32": 5e-3, "float64": 1e-6}
# MXNet 1.9's gradient of PReLU's slopes is wrong (``test_torch_operators``).
SLOPES = "grad:prelu"


@pytest.fixture(scope="module")
def passes(run_script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXNet's passes of all networks."""
    folder = tmp_path_factory.mktemp("networks")
    run_script("network_symbol_gradients", folder)
    return folder


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in UNTRAINABLE])
def test_trains_as_mxnet_does(name: str, passes: Path) -> None:
    dtype = "float32" if name in FLOAT32 else "float64"
    expected = {
        key: array
        for key, array in read_pass(name, passes, dtype).items()
        if not key.startswith(SLOPES)
    }
    found = run_pass(name, passes, dtype)
    assert measure_distance(found, expected) <= BOUNDS[dtype]
    for key in expected:
        if key.startswith(("output:", "state:")):
            scale = abs(expected[key]).max()
            assert abs(found[key] - expected[key]).max() <= BOUNDS[dtype] * scale, key
    assert sum(abs(found[key]).max() > 0 for key in expected if key.startswith("grad:")) > 3
