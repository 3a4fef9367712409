"""TensorFlow DeepLab's V3+ on Xception-65: names and the order of axes.

Published: xception65_{coco_voc_trainaug, coco_voc_trainval, cityscapes_trainfine, ade20k_train}.

Source: tensorflow/models research/deeplab g3doc/model_zoo.md, core/xception.py, model.py.
"""

from __future__ import annotations

import numpy as np

from training.weights.array_file import Arrays
from training.weights.errors import WeightsError
from training.weights.translated import Translated, find_width, need

BACKBONE = "xception_65/"
ENDINGS = {
    "/BatchNorm/gamma": "_BN_gamma",
    "/BatchNorm/beta": "_BN_beta",
    "/BatchNorm/moving_mean": "_BN_running_mean",
    "/BatchNorm/moving_variance": "_BN_running_var",
    "/depthwise_weights": "_weight",
    "/weights": "_weight",
    "/biases": "_bias",
}
# Of convolutions over rows and columns; a depthwise one's last axis is 1.
DEPTHWISE_AXES, AXES = (2, 3, 0, 1), (3, 2, 0, 1)
STEM_CHANNELS = 32
UNUSED = ("global_step", "xception_65/logits/")


def translate_tf_deeplab(arrays: Arrays) -> Translated:
    """To ``deeplabv3plus``. Raises WeightsError."""
    renamed = {}
    for name, array in arrays.items():
        if name.startswith(UNUSED):
            continue
        new = rename(name)
        if array.ndim == 4:
            depthwise = name.endswith("/depthwise_weights")
            array = np.ascontiguousarray(array.transpose(DEPTHWISE_AXES if depthwise else AXES))
        renamed[new] = array
    return Translated(
        model="deeplabv3plus",
        backbone="xception65",
        classes=need(renamed, "logits_semantic_bias").shape[0],
        arrays=renamed,
        width=find_width(renamed, "entry_flow_conv1_1_weight", STEM_CHANNELS),
    )


def rename(name: str) -> str:
    """TensorFlow's name of a variable -> the symbol's. Raises WeightsError."""
    for ending, new in ENDINGS.items():
        if name.endswith(ending):
            stem = name.removesuffix(ending).removeprefix(BACKBONE).removeprefix("decoder/")
            flow, _, rest = stem.partition("/")
            if flow in ("entry_flow", "exit_flow"):
                rest = rest.replace("/unit_1/xception_module", "")
            elif flow == "middle_flow":
                rest = rest.removeprefix("block1/").replace("/xception_module", "")
            return "_".join(filter(None, (flow, *rest.split("/")))) + new
    raise WeightsError(f"{name} is no variable of TensorFlow's DeepLab V3+ on Xception-65")
