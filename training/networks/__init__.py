"""The networks, behind one constructor."""

from __future__ import annotations

from training.mxnet_import import mx
from training.networks.icnet import SIZE_MULTIPLE, ICNet
from training.networks.resnet import Norm

__all__ = ["ICNet", "build"]

MODEL_ALIASES = {"psp": "pspnet"}
SIZE_MULTIPLES = {"icnet": SIZE_MULTIPLE}


def build(
    name: str,
    backbone: str,
    num_classes: int,
    height: int,
    width: int,
    norm_layer: type | None = None,
    norm_kwargs: dict[str, int] | None = None,
    channel_multiplier: float = 1.0,
) -> ICNet:
    """A network for exactly ``height`` x ``width`` pixels.

    Args:
        name: ``icnet``.
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.
        norm_layer: ``BatchNorm`` unless told otherwise; reaches every layer of the network.
        norm_kwargs: for ``SyncBatchNorm`` ``{"num_devices": n}``.
        channel_multiplier: width of the backbone and the layers behind it (``--width``).

    Raises:
        ValueError: an unknown name or backbone, or a size that the network does not allow; the
            message names the nearest legal one.
    """
    name = MODEL_ALIASES.get(name, name)
    if name not in SIZE_MULTIPLES:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(SIZE_MULTIPLES)}")
    multiple = SIZE_MULTIPLES[name]
    if height % multiple or width % multiple or min(height, width) < multiple:
        nearest = tuple(max(multiple, round(n / multiple) * multiple) for n in (height, width))
        raise ValueError(
            f"{name} takes sizes that are multiples of {multiple}, not {height}x{width}; "
            f"the nearest is {nearest[0]}x{nearest[1]}"
        )
    norm = Norm(norm_layer or mx.gluon.nn.BatchNorm, **(norm_kwargs or {}))
    return ICNet(backbone, num_classes, height, width, norm, channel_multiplier, prefix="icnet_")
