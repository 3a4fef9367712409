"""ICNet of liminn/ICNet-pytorch, and of Ascend's ModelZoo, which has the same names.

Source: liminn/ICNet-pytorch models/icnet.py, models/segbase.py; Ascend/ModelZoo-PyTorch
ICNet_ID1781_for_PyTorch.
"""

from __future__ import annotations

from training.weights.array_file import Arrays
from training.weights.translated import (
    Translated,
    find_backbone,
    find_width,
    need,
    rename_batch_norms,
)

BACKBONE = "pretrained."
# ImageNet's classifier, which the network never asks.
UNUSED = "pretrained.fc."


def translate_liminn(arrays: Arrays) -> Translated:
    """To ``icnet_two_pass``. Raises WeightsError."""
    renamed = {
        name.removeprefix(BACKBONE).replace(".conv_high.", ".conv_hign."): array
        for name, array in rename_batch_norms(arrays).items()
        if not name.startswith(UNUSED)
    }
    classes = need(renamed, "head.conv_cls.weight").shape[0]
    return Translated(
        model="icnet_two_pass",
        backbone=find_backbone(renamed),
        classes=classes,
        arrays=renamed,
        width=find_width(renamed, "conv1.0.weight"),
    )
