"""The ResNets, and the backbone that each network is known with. Needs no MXNet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneSpec:
    """Blocks a stage, and whether they are bottlenecks (output four times as wide)."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1


BACKBONES: dict[str, BackboneSpec] = {
    "resnet18": BackboneSpec((2, 2, 2, 2), bottleneck=False),
    "resnet34": BackboneSpec((3, 4, 6, 3), bottleneck=False),
    "resnet50": BackboneSpec((3, 4, 6, 3), bottleneck=True),
    "resnet101": BackboneSpec((3, 4, 23, 3), bottleneck=True),
    "resnet152": BackboneSpec((3, 8, 36, 3), bottleneck=True),
}

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
