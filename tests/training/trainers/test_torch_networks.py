"""Every network in PyTorch against MXNet: outputs, gradients and running statistics of one pass in
training, dropout off, at reduced size and width."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.symbols.networks import NETWORKS  # noqa: E402
from tests.support.torch_gradients import (  # noqa: E402
    measure_differences,
    measure_distance,
    read_pass,
    run_pass,
)


@dataclass(frozen=True)
class Case:
    """A network, and what it is given."""

    model: str
    backbone: str
    aux: bool = False
    output_stride: int = 16
    rows: int = 64
    columns: int = 96
    width: float = 0.25
    classes: int = 5
    batch: int = 2


CASES = {
    "icnet": Case("icnet", "resnet18"),
    # Its pyramid normalises a single value a channel.
    "icnet_one_image": Case("icnet", "resnet18", batch=1),
    "icnet_50": Case("icnet", "resnet50"),
    "icnet_fast_seg": Case("icnet_fast_seg", "resnet50"),
    # Its backbone sees a quarter of the image, too.
    "icnet_two_pass": Case("icnet_two_pass", "resnet50", rows=128, columns=192),
    "icnet_paper": Case("icnet_paper", "resnet50", rows=193, columns=225),
    "deeplabv2": Case("deeplabv2", "resnet50", rows=65, columns=97),
    "pspnet_50_aux": Case("pspnet", "resnet50", aux=True),
    "pspnet_101": Case("pspnet", "resnet101"),
    "fcn": Case("fcn", "resnet18", rows=45, columns=70),
    "fcn_50_aux": Case("fcn", "resnet50", aux=True),
    "deeplabv3_50": Case("deeplabv3", "resnet50"),
    "deeplabv3_101_aux": Case("deeplabv3", "resnet101", aux=True),
    "deeplabv3plus_16": Case("deeplabv3plus", "xception65"),
    "deeplabv3plus_8": Case("deeplabv3plus", "xception65", output_stride=8, rows=65, columns=97),
    "deeplab_msra_50": Case("deeplab_msra", "resnet50"),
    "deeplab_msra_101": Case("deeplab_msra", "resnet101"),
    "deeplab_msra_dcn_50": Case("deeplab_msra_dcn", "resnet50", rows=65, columns=97),
}


def test_no_network_is_left_out() -> None:
    assert {case.model for case in CASES.values()} == set(NETWORKS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small maps: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def passes(run_script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXNet's passes of all networks."""
    folder = tmp_path_factory.mktemp("networks")
    run_script("network_gradients", folder, json.dumps({k: asdict(v) for k, v in CASES.items()}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_mxnet_in_float64(name: str, passes: Path) -> None:
    expected = read_pass(name, passes, "float64")
    found = measure_differences(run_pass(name, passes, "float64"), expected)
    assert max(found.values()) <= 1e-6, {k: v for k, v in found.items() if v > 1e-6}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_mxnet_in_float32(name: str, passes: Path) -> None:
    """Batch norms keep their statistics here: those of a batch multiply rounding a thousandfold in
    a deep random network (the next test). A ReLU whose input is zero but for rounding still falls
    to either side, which a single array may show."""
    expected = read_pass(f"{name}_frozen", passes, "float32")
    found = run_pass(f"{name}_frozen", passes, "float32")
    differences = measure_differences(found, expected)
    assert max(v for k, v in differences.items() if not k.startswith("grad:")) <= 1e-3
    assert measure_distance(found, expected) <= 1e-3
    assert max(differences.values()) <= 2e-2, {k: v for k, v in differences.items() if v > 2e-2}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_float32_is_no_further_from_float64_than_mxnets(name: str, passes: Path) -> None:
    exact = read_pass(name, passes, "float64")
    theirs = measure_distance(read_pass(name, passes, "float32"), exact)
    ours = measure_distance(run_pass(name, passes, "float32"), exact)
    # ReLUs whose input is zero but for rounding decide who is nearer: 0.3 to 2.2 times as far.
    assert ours <= max(1e-3, 3 * theirs)
