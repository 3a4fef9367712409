"""The backbone that each network is known with. Imports nothing, so that no MXNet is needed."""

from __future__ import annotations

_USUAL = "resnet50"
# Of the networks, GluonCV's names for them too, that are published with another one.
_OWN = {
    "deeplabv3plus": "xception65",
    "deeplabplus": "xception65",
    "deeplabv2": "resnet101",
    "deeplab_msra": "resnet101",
    "deeplab_msra_dcn": "resnet101",
}


def default_backbone(model: str) -> str:
    """The backbone of a network that was named without one."""
    return _OWN.get(model, _USUAL)
