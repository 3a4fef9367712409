"""The networks, behind one constructor.

| name | backbones | sizes | outputs |
|---|---|---|---|
| ``icnet`` | resnet18 to resnet152 | multiples of 32 | full size, 1/4, 1/8, 1/16 |
| ``icnet_fast_seg``, ``icnet_two_pass`` | the same | multiples of 32 | the same |
| ``icnet_paper`` | the same, at half width | multiples of 32 plus one | the same |
| ``pspnet`` (``psp``) | the same | multiples of 8 | full size; that of the auxiliary head |
| ``fcn`` | the same | any | full size; that of the auxiliary head |
| ``deeplabv3`` (``deeplab``) | the same | multiples of 8 | full size; the auxiliary head's |
| ``deeplabv2`` | resnet50, 101, 152 (Caffe's) | multiples of 8, or those + 1 | full size |
| ``deeplabv3plus`` (``deeplabplus``) | xception65, resnet18... | of 16, or those + 1 | full size |
| ``deeplab_msra``, ``deeplab_msra_dcn`` | resnet50, 101, 152 (Caffe's) | any | probabilities |

A network gives a tuple; its element 0 is the prediction, the others serve training only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from export.mxnet_import import mx
from export.symbols.networks import MODEL_ALIASES, NETWORKS, default_backbone
from training.networks import caffe, deeplabv3, deeplabv3plus, fcn, icnet, pspnet
from training.networks.layers import NetworkConfig, Norm, SizeRule

# A ``mx.gluon.HybridBlock`` with ``full_output``: False, before ``hybridize``, leaves the resize to
# full size out. MXNet has no types.
Network: TypeAlias = mx.gluon.HybridBlock


@dataclass(frozen=True)
class Architecture:
    """An entry of the mapping: how a network is built, and for which sizes (one rule, or one for
    each output stride).
    """

    make: Callable[[NetworkConfig], Network]
    sizes: SizeRule | Mapping[int, SizeRule]


ARCHITECTURES: Mapping[str, Architecture] = {
    **{
        name: Architecture(partial(icnet.ICNet, form=form, prefix="icnet_"), form.sizes)
        for name, form in icnet.FORMS.items()
    },
    "pspnet": Architecture(partial(pspnet.PSPNet, prefix="pspnet_"), pspnet.SIZES),
    "fcn": Architecture(partial(fcn.FCN, prefix="fcn_"), fcn.SIZES),
    "deeplabv2": Architecture(caffe.DeepLabV2, caffe.V2_SIZES),
    "deeplabv3": Architecture(partial(deeplabv3.DeepLabV3, prefix="deeplabv3_"), deeplabv3.SIZES),
    "deeplabv3plus": Architecture(deeplabv3plus.deeplabv3plus, deeplabv3plus.SIZES),
    "deeplab_msra": Architecture(caffe.MSRADeepLab, caffe.MSRA_SIZES),
    "deeplab_msra_dcn": Architecture(partial(caffe.MSRADeepLab, deformable=True), caffe.MSRA_SIZES),
}


def build(
    name: str,
    backbone: str | None,
    num_classes: int,
    height: int,
    width: int,
    norm: Norm | None = None,
    channel_multiplier: float = 1.0,
    *,
    aux: bool = False,
    output_stride: int = 16,
) -> Network:
    """Returns a network for exactly ``height`` x ``width`` pixels.

    Args:
        name: of ``ARCHITECTURES``, or GluonCV's name for one.
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``, or
            ``xception65`` (DeepLabV3+ alone); None is the one that the network is published with.
        norm: reaches every layer of the network; None is ``BatchNorm``.
        channel_multiplier: width of the backbone and the layers behind it (``--width``).
        aux: an auxiliary head on stage 3 (PSPNet, FCN and DeepLabV3; the others ignore it).
        output_stride: 8 or 16, of DeepLabV3+.

    Raises:
        ValueError: an unknown name, backbone or output stride, or a size that the network does not
            allow; the message names the nearest legal one.
    """
    name = MODEL_ALIASES.get(name, name)
    size_rule(name, output_stride).check(name, height, width)
    config = NetworkConfig(
        backbone or default_backbone(name), num_classes, height, width,
        norm or Norm(mx.gluon.nn.BatchNorm), channel_multiplier, aux, output_stride,
    )  # fmt: skip
    return ARCHITECTURES[name].make(config)


def size_rule(name: str, output_stride: int = 16) -> SizeRule:
    """Returns a network's legal sizes. Raises ValueError for an unknown name or output stride."""
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(NETWORKS)}")
    sizes = ARCHITECTURES[name].sizes
    if isinstance(sizes, SizeRule):
        return sizes
    if output_stride not in sizes:
        raise ValueError(f"output stride {output_stride}; {name} has 8 and 16")
    return sizes[output_stride]
