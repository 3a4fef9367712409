"""The networks' names, and how many losses each has. Needs no MXNet."""

from __future__ import annotations

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
    """What acts on GluonCV's gradients: 1 for each term, whatever its weights say.

    Its ``SoftmaxOutput`` ignores the gradient that comes in. ICNet's first two terms are one map
    at two sizes, so its prediction counts twice.
    """
    return (2.0 if model.startswith("icnet") else 1.0, *(1.0,) * (losses - 1))
