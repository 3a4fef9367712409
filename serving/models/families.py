"""Chooses the model of a family that an image goes to.

A family groups models of the same classes that differ in shape and precision. Its name stands for
whichever fits an image best; a model's own name always means that model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving.errors import ModelNotFound
from serving.imaging.geometry import Size
from serving.models.model import Model
from serving.palette import LabelSet

# Fastest first (docs/precision.md, docs/engines.md), by what an engine runs on; an engine
# elsewhere, of which nothing is known, by accuracy.
PRECISIONS = {
    "cpu": ("int8", "bf16", "fp32", "fp16"),
    "gpu": ("fp16", "bf16", "fp32", "int8"),
    "cuda": ("fp16", "fp32", "int8"),
    "tensorrt": ("fp16", "fp32", "int8"),
}
OTHERWISE = ("fp32", "fp16", "int8")

# Shapes whose aspects differ by less are equally near: legal sizes are not exact multiples.
ASPECT_TOLERANCE = 0.02


def choose(name: str, members: Sequence[Model], image: Size) -> Model:
    """Returns the member for an image: by its engine's preferred precision, then the nearest
    aspect, then the smallest that is not below the image, else the largest.

    Raises:
        ModelNotFound: as :func:`family_labels`.
    """
    family_labels(name, members)
    precision = min(_precision_rank(model) for model in members)
    left = [model for model in members if _precision_rank(model) == precision]
    nearest = min(_aspect_distance(model.spec.size, image) for model in left)
    left = [
        model
        for model in left
        if _aspect_distance(model.spec.size, image) <= nearest + ASPECT_TOLERANCE
    ]
    enough = [
        model
        for model in left
        if model.spec.size.height >= image.height and model.spec.size.width >= image.width
    ]
    if enough:
        return min(enough, key=_area)
    return max(left, key=_area)


def family_labels(name: str, members: Sequence[Model]) -> LabelSet:
    """Returns the classes that all members share.

    Raises:
        ModelNotFound: they differ, so that no answer could be the family's; or there are none.
    """
    if not members:
        raise ModelNotFound(f"family {name!r} has no loaded model")
    first = members[0]
    for model in members[1:]:
        if model.labels != first.labels:
            raise ModelNotFound(
                f"family {name!r} groups models of different classes ({first.name}, {model.name}); "
                f"ask for one of them, or give them different families"
            )
    return first.labels


def _precision_rank(model: Model) -> int:
    order = PRECISIONS.get(model.engine.name.rpartition("-")[2], OTHERWISE)
    return order.index(model.spec.precision) if model.spec.precision in order else len(order)


def _aspect_distance(size: Size, image: Size) -> float:
    return abs(math.log(size.width * image.height / (size.height * image.width)))


def _area(model: Model) -> int:
    return model.spec.size.height * model.spec.size.width
