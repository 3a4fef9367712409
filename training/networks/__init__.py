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

from export.mxnet_import import mx
from export.symbols.networks import BACKBONES, MODEL_ALIASES, NETWORKS
from training.networks import deeplab_msra, deeplabv2, deeplabv3, deeplabv3plus, fcn, pspnet
from training.networks.deeplab_msra import MSRADeepLab
from training.networks.deeplabv2 import DeepLabV2
from training.networks.deeplabv3 import DeepLabV3
from training.networks.deeplabv3plus import DeepLabV3Plus, DeepLabV3PlusResNet
from training.networks.fcn import FCN
from training.networks.icnet import ICNet
from training.networks.icnet_forms import FORMS
from training.networks.layers import Norm
from training.networks.pspnet import PSPNet
from training.networks.sizes import SizeRule

__all__ = [
    "FCN",
    "MODEL_ALIASES",
    "NETWORKS",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DeepLabV3PlusResNet",
    "ICNet",
    "MSRADeepLab",
    "Network",
    "PSPNet",
    "build",
    "size_rule",
]

Network = (
    ICNet | PSPNet | FCN | DeepLabV2 | DeepLabV3 | DeepLabV3Plus | DeepLabV3PlusResNet | MSRADeepLab
)

XCEPTION = "xception65"


def build(
    name: str,
    backbone: str,
    num_classes: int,
    height: int,
    width: int,
    norm_layer: type | None = None,
    norm_kwargs: dict[str, int] | None = None,
    channel_multiplier: float = 1.0,
    *,
    aux: bool = False,
    output_stride: int = 16,
) -> Network:
    """A network for exactly ``height`` x ``width`` pixels.

    Args:
        name: of ``NETWORKS``, or GluonCV's name for one.
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101``, ``resnet152``, or
            ``xception65`` (DeepLabV3+ alone).
        norm_layer: ``BatchNorm`` unless told otherwise; reaches every layer of the network.
        norm_kwargs: for ``SyncBatchNorm`` ``{"num_devices": n}``.
        channel_multiplier: width of the backbone and the layers behind it (``--width``).
        aux: an auxiliary head on stage 3 (PSPNet, FCN and DeepLabV3; the others ignore it).
        output_stride: 8 or 16, of DeepLabV3+.

    Raises:
        ValueError: an unknown name, backbone or output stride, or a size that the network does not
            allow; the message names the nearest legal one.
    """
    name = MODEL_ALIASES.get(name, name)
    size_rule(name, output_stride).check(name, height, width)
    norm = Norm(norm_layer or mx.gluon.nn.BatchNorm, **(norm_kwargs or {}))
    if name == "deeplabv3plus":
        if backbone == XCEPTION:
            return DeepLabV3Plus(
                num_classes, height, width, norm, channel_multiplier, output_stride
            )
        if backbone not in BACKBONES:
            known = ", ".join((XCEPTION, *BACKBONES))
            raise ValueError(f"unknown backbone {backbone!r} for {name}; known: {known}")
        return DeepLabV3PlusResNet(
            backbone, num_classes, height, width, norm, channel_multiplier, output_stride,
            prefix=f"{name}_",
        )  # fmt: skip
    if name == "deeplabv2":
        return DeepLabV2(backbone, num_classes, height, width, norm, channel_multiplier)
    if name.startswith("deeplab_msra"):
        deformable = name.endswith("_dcn")
        return MSRADeepLab(backbone, num_classes, norm, channel_multiplier, deformable)
    if name in FORMS:
        return ICNet(
            backbone, num_classes, height, width, norm, channel_multiplier, FORMS[name],
            prefix="icnet_",
        )  # fmt: skip
    segmenter = {"pspnet": PSPNet, "fcn": FCN, "deeplabv3": DeepLabV3}[name]
    return segmenter(
        backbone, num_classes, height, width, norm, channel_multiplier, aux, prefix=f"{name}_"
    )


def size_rule(name: str, output_stride: int = 16) -> SizeRule:
    """The sizes that a network can have. Raises ValueError for an unknown name or stride."""
    rules = {
        **{form: facts.sizes for form, facts in FORMS.items()},
        "pspnet": pspnet.SIZES,
        "fcn": fcn.SIZES,
        "deeplabv2": deeplabv2.SIZES,
        "deeplabv3": deeplabv3.SIZES,
        "deeplab_msra": deeplab_msra.SIZES,
        "deeplab_msra_dcn": deeplab_msra.SIZES,
    }
    if name == "deeplabv3plus":
        if output_stride not in deeplabv3plus.SIZES:
            raise ValueError(f"output stride {output_stride}; {name} has 8 and 16")
        return deeplabv3plus.SIZES[output_stride]
    if name not in rules:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(NETWORKS)}")
    return rules[name]
