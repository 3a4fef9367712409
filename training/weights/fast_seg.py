"""Fast_Seg's ICNet (``icnet_final.pth``): names, and the order of the pyramid's channels.

Source: lxtGH/Fast_Seg libs/models/ICNet.py and PSPNet.py.
"""

from __future__ import annotations

import numpy as np

from training.weights.array_file import Arrays
from training.weights.translated import (
    Translated,
    find_backbone,
    find_width,
    need,
    rename_batch_norms,
    replace_start,
)

STARTS = {
    "backbone.conv1.": "conv1.0.",
    "backbone.bn1.": "conv1.1.",
    "backbone.conv2.": "conv1.3.",
    "backbone.bn2.": "conv1.4.",
    "backbone.conv3.": "conv1.6.",
    "backbone.bn3.": "bn1.",
    **{f"backbone.head.stages.{i}.1.": f"psp_head.psp.conv{i + 1}.0." for i in range(4)},
    **{f"backbone.head.stages.{i}.2.": f"psp_head.psp.conv{i + 1}.1." for i in range(4)},
    "backbone.head.bottleneck.": "psp_head.block.",
    "backbone.": "",
}
BOTTLENECK = "psp_head.block.0.weight"


def translate_fast_seg(arrays: Arrays) -> Translated:
    """To ``icnet_fast_seg``. Raises WeightsError."""
    renamed = {
        replace_start(name, STARTS).replace(".conv_high.", ".conv_hign."): array
        for name, array in rename_batch_norms(arrays).items()
    }
    weight = need(renamed, BOTTLENECK)
    # There the branches come before the map that they are made of, here behind it.
    own = weight.shape[1] // 2
    renamed[BOTTLENECK] = np.concatenate([weight[:, own:], weight[:, :own]], axis=1)
    return Translated(
        model="icnet_fast_seg",
        backbone=find_backbone(renamed),
        classes=need(renamed, "head.conv_cls.weight").shape[0],
        arrays=renamed,
        width=find_width(renamed, "conv1.0.weight"),
    )
