"""GluonCV's checkpoints (``save_parameters``): their names are those of the networks here.

Source: gluon-cv model_zoo/{icnet,pspnet,fcn,deeplabv3}.py.
"""

from __future__ import annotations

from training.weights.array_file import Arrays
from training.weights.errors import WeightsError
from training.weights.translated import Translated, find_backbone, find_width, need

CLASSIFIERS = {"icnet": "head.conv_cls.weight"}
CLASSIFIER = "head.block.4.weight"
# What only that network has.
MARKS = {
    "icnet": "head.cff_12.conv_hign.0.weight",
    "pspnet": "head.psp.conv1.0.weight",
    "deeplabv3": "head.aspp.project.0.weight",
    "fcn": CLASSIFIER,
}


def translate_gluoncv(arrays: Arrays) -> Translated:
    """To the network that the names tell. Raises WeightsError."""
    model = next((model for model, mark in MARKS.items() if mark in arrays), None)
    if model is None:
        raise WeightsError(
            f"these names are none of {', '.join(MARKS)}'s, as GluonCV's save_parameters has them "
            f"(they have {', '.join(sorted(arrays)[:3])}, ...)"
        )
    return Translated(
        model=model,
        backbone=find_backbone(arrays),
        classes=need(arrays, CLASSIFIERS.get(model, CLASSIFIER)).shape[0],
        arrays=arrays,
        width=find_width(arrays, "conv1.0.weight"),
        aux=any(name.startswith("auxlayer.") for name in arrays),
    )
