"""Whether OpenVINO answers as ONNX Runtime does, for any file of the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from serving.engines.cpu_choice import agreement, has_openvino, read_picture
from serving.engines.onnxruntime import OnnxEngine
from serving.engines.openvino import OpenVinoEngine
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction

needs_openvino = pytest.mark.skipif(
    not has_openvino(), reason="OpenVINO is not installed (extra 'openvino')"
)
# Labels that must be equal: float32 differs by rounding alone, the others round the same numbers
# at other places.
LEAST = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.97, "int8": 0.95}


def make_batch(size: Size, n: int) -> npt.NDArray[np.uint8]:
    """Pictures that differ: a street, mirrored, darker, ..."""
    street = read_picture(size)[0]
    kinds = [street, street[:, ::-1], street // 2, street[::-1], 255 - street]
    return np.ascontiguousarray(np.stack([kinds[i % len(kinds)] for i in range(n)]))


def check_parity(path: Path, precision: str = "fp32", batch_sizes: tuple[int, ...] = (2,)) -> None:
    """Compares the answers of both engines; ``precision`` is what OpenVINO computes floats in."""
    most = max(batch_sizes)
    reference = OnnxEngine(path, instances=1, threads=1, max_batch_size=most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_CACHE_DIR", str(path.parent / "cache"))
        engine = OpenVinoEngine(
            path, instances=1, threads=1, max_batch_size=most, precision=precision
        )
    for n in batch_sizes:
        batch = make_batch(engine.spec.size, n)
        expected, found = reference.run(batch), engine.run(batch)
        _check_shape(expected, found)
        least = LEAST[engine.spec.precision]
        assert agreement(found, expected) >= least, (path, n, agreement(found, expected))
        if precision == "fp32" and engine.spec.precision != "int8" and found.logits is not None:
            assert expected.logits is not None
            largest = np.abs(expected.logits).max()
            assert np.abs(found.logits - expected.logits).max() <= 2e-3 * largest
    engine.close()
    reference.close()


def _check_shape(expected: Prediction, found: Prediction) -> None:
    for one, other in ((expected.logits, found.logits), (expected.mask, found.mask)):
        if one is None or other is None:
            assert one is other
        else:
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
