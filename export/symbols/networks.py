"""The names of the networks and their backbones, and how many losses each has. Needs no MXNet."""

from __future__ import annotations

from dataclasses import dataclass

NETWORKS = (
    "icnet",
    "icnet_fast_seg",
    "icnet_two_pass",
    "icnet_paper",
    "pspnet",
    "fcn",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "deeplab_msra",
    "deeplab_msra_dcn",
)
# GluonCV's names.
MODEL_ALIASES = {"psp": "pspnet", "deeplab": "deeplabv3", "deeplabplus": "deeplabv3plus"}
# Those that ``--aux`` gives a head on stage 3.
WITH_AUXILIARY = ("pspnet", "fcn", "deeplabv3")


def count_losses(model: str, aux: bool) -> int:
    """Maps with a loss: the prediction and ICNet's two auxiliary ones, or one where ``aux``."""
    if model.startswith("icnet"):
        return 3
    return 2 if aux and model in WITH_AUXILIARY else 1


def legacy_loss_weights(model: str, losses: int) -> tuple[float, ...]:
    """Returns what acts on GluonCV's gradients: 1 for each term, whatever its weights say.

    Its ``SoftmaxOutput`` ignores the gradient that comes in. ICNet's first two terms are one map
    at two sizes, so its prediction counts twice.
    """
    return (2.0 if model.startswith("icnet") else 1.0, *(1.0,) * (losses - 1))


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
    """Returns the backbone of a network that was named without one."""
    return _OWN.get(model, _USUAL)
