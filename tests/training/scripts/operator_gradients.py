"""MXNet's gradients of single operators: ``operator_gradients.py FOLDER``.

The cases are those of the exporter's tests, and those here that only gradients tell apart.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS.parent))

from tests.support.operator_cases import FLOAT32 as FLOAT32_FAMILIES  # noqa: E402
from tests.support.operator_cases import UNTRAINABLE as UNTRAINABLE_FAMILIES  # noqa: E402
from tests.support.operator_cases import draw_cases, is_of  # noqa: E402

Case = Callable[..., object]
SIZE = (13, 17)
# What MXNet has in float32 only. Its SyncBatchNorm has no CPU kernel that trains: left out.
FLOAT32 = ("softmax_activation", "softmax_instance", "crop_like", "crop_size", "crop_center",
           "crop_center_like", "msra_head")  # fmt: skip
UNTRAINABLE = ("sync_batch_norm",)


def output(mx, x, **options):  # type: ignore[no-untyped-def]
    return mx.sym.SoftmaxOutput(x * 3, name="softmax", **{"multi_output": True, **options})


def still_deformable(mx, x, **options):  # type: ignore[no-untyped-def]
    """Offsets are zero, as where training starts: every position is whole."""
    geometry = {"kernel": (3, 3), "pad": (2, 2), "dilate": (2, 2)}
    offset = mx.sym.Convolution(x, name="still", num_filter=18, **geometry)
    return mx.sym.contrib.DeformableConvolution(
        data=x, offset=offset, name="deform", num_filter=4, **geometry, **options
    )


def flat(mx, x):  # type: ignore[no-untyped-def]
    """Few values, many of them equal."""
    return mx.sym.clip(x, -0.125, 0.125)


OWN: dict[str, Case] = {
    "output_plain": lambda mx, x: output(mx, x),
    "output_scaled": lambda mx, x: output(mx, x, grad_scale=2.5),
    "output_batch": lambda mx, x: output(mx, x, normalization="batch"),
    "output_valid": lambda mx, x: output(
        mx, x, normalization="valid", use_ignore=True, ignore_label=255
    ),
    "output_valid_without_ignore": lambda mx, x: output(
        mx, x, normalization="valid", ignore_label=255, grad_scale=0.5
    ),
    "output_ignore": lambda mx, x: output(mx, x, use_ignore=True, ignore_label=255),
    "output_flat": lambda mx, x: mx.sym.SoftmaxOutput(
        mx.sym.Flatten(x), use_ignore=True, ignore_label=255, normalization="valid", name="softmax"
    ),
    "output_flat_batch": lambda mx, x: mx.sym.SoftmaxOutput(
        mx.sym.Flatten(x), use_ignore=True, ignore_label=255, normalization="batch", name="softmax"
    ),
    "logistic": lambda mx, x: mx.sym.LogisticRegressionOutput(x * 2, grad_scale=0.7, name="out"),
    "linear": lambda mx, x: mx.sym.LinearRegressionOutput(x * 2, grad_scale=1.3, name="out"),
    "absolute": lambda mx, x: mx.sym.MAERegressionOutput(x * 2, name="out"),
    "equal_min": lambda mx, x: mx.sym.min(flat(mx, x), axis=(1, 3)),
    "make_loss": lambda mx, x: mx.sym.MakeLoss(x * 2, grad_scale=0.3),
    "make_loss_batch": lambda mx, x: mx.sym.MakeLoss(x * 2, normalization="batch"),
    "make_loss_valid": lambda mx, x: mx.sym.MakeLoss(x * 2, normalization="valid", valid_thresh=1),
    "deform_still": lambda mx, x: still_deformable(mx, x),
    "deform_grouped": lambda mx, x: mx.sym.contrib.DeformableConvolution(
        data=mx.sym.concat(x, x * 2), num_group=2, num_deformable_group=2, name="deform",
        offset=mx.sym.Convolution(x, name="offset", num_filter=36, kernel=(3, 3), pad=(1, 1)),
        num_filter=4, kernel=(3, 3), pad=(1, 1),
    ),
    "equal_max": lambda mx, x: mx.sym.max(flat(mx, x), axis=(2, 3)),
    "equal_pool": lambda mx, x: mx.sym.Pooling(
        flat(mx, x), kernel=(3, 3), stride=(2, 2), pool_type="max"
    ),
    "equal_pool_global": lambda mx, x: mx.sym.Pooling(
        flat(mx, x), kernel=(1, 1), global_pool=True, pool_type="max"
    ),
    "equal_broadcast_maximum": lambda mx, x: mx.sym.broadcast_maximum(flat(mx, x), mx.sym.clip(
        x, -0.25, 0.125)),
    "equal_broadcast_minimum": lambda mx, x: mx.sym.broadcast_minimum(flat(mx, x), mx.sym.clip(
        x, -0.25, 0.125)),
    "equal_scalars": lambda mx, x: (
        mx.sym.maximum(flat(mx, x), 0.125) + mx.sym.minimum(flat(mx, x), -0.125)
    ),
    "equal_relu": lambda mx, x: mx.sym.relu(mx.sym.relu(x)),
    "equal_abs": lambda mx, x: mx.sym.abs(mx.sym.relu(x)),
    "softmax_temperature": lambda mx, x: mx.sym.softmax(x, axis=1, temperature=2.0),
    "softmax_instance": lambda mx, x: mx.sym.SoftmaxActivation(mx.sym.Flatten(x)),
    "logarithm": lambda mx, x: mx.sym.log(mx.sym.exp(x) + 1),
    "negative_sub": lambda mx, x: mx.sym.broadcast_sub(
        mx.sym.negative(x), mx.sym.mean(x, axis=(2, 3), keepdims=True)
    ),
}  # fmt: skip


def read_cases() -> dict[str, dict[str, Case]]:
    """By where they come from: the exporter's two files, and this one."""
    files = ("test_operators", "test_networks_operators")
    found = {
        name: runpy.run_path(str(TESTS / "export" / "lowering" / f"{name}.py"))["CASES"]
        for name in files
    }
    found["drawn"] = {
        name: case for name, case in draw_cases().items() if not is_of(name, UNTRAINABLE_FAMILIES)
    }
    return {
        group: {name: case for name, case in cases.items() if name not in UNTRAINABLE}
        for group, cases in {**found, "own": OWN}.items()
    }


def dtype_of(name: str) -> str:
    """The type that MXNet's kernels of a case have."""
    return "float32" if name in FLOAT32 or is_of(name, FLOAT32_FAMILIES) else "float64"


def main(folder: Path) -> None:
    from tests.support.mxnet_gradients import write_gradients
    from tests.support.mxnet_operators import write_cases

    for group, cases in read_cases().items():
        (folder / group).mkdir()
        write_cases(cases, folder / group, SIZE)
        for name in cases:
            write_gradients(name, folder / group, dtype_of(name))
    (folder / "forward").mkdir()
    write_cases(
        {name: case for name, case in draw_cases().items() if is_of(name, UNTRAINABLE_FAMILIES)},
        folder / "forward",
        SIZE,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
