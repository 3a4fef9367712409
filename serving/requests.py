"""The requests of the service and its results, the same for every transport, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest, TooLarge, UnsupportedOption
from serving.formats import registry as mask
from serving.formats.label_map import Encoded, MaskOptions
from serving.imaging.geometry import PLAIN, Augmentation, Plan, Size
from serving.models.model import Model
from serving.observability.request_context import Timings
from serving.palette import LabelMap, LabelSet
from serving.parsing import find_integer, read_decimal
from serving.settings import Settings

OutputSize = Literal["original", "model"]


@dataclass(frozen=True)
class SegmentOptions:
    """The options of a request: what its answer looks like.

    Attributes:
        formats: names of ``serving.formats.registry.FORMATS``, one or several.
        size: the photo's own size, or the network's.
        smooth: interpolate logits (True) or take nearest ids (False); None: what the model can.
        classes: names or ids to keep; other pixels become the ignore label. Empty: all.
        form: how the formats are written.
        tta: test-time augmentation: ``flip``, and scales as text (``0.75``). Empty: none.
    """

    formats: tuple[str, ...] = ("png",)
    size: OutputSize = "original"
    smooth: bool | None = None
    classes: tuple[str, ...] = ()
    form: MaskOptions = field(default_factory=MaskOptions)
    tta: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentRequest:
    """One encoded image for one model; ``timeout_s`` counts from now."""

    model: str
    data: bytes
    options: SegmentOptions
    version: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class SegmentResult:
    """The encoded answer, by output format. ``image_size`` is the photo's own, after EXIF."""

    parts: Mapping[str, Encoded]
    model: str
    version: int
    image_size: Size
    answer_size: Size
    timings: Timings

    @property
    def only(self) -> Encoded:
        """Returns the answer where one format was asked for; the first of several."""
        return next(iter(self.parts.values()))


@dataclass(frozen=True)
class Described:
    """A description of a model for clients, or of a family, which has no version and no size."""

    name: str
    version: int
    labels: LabelSet
    size: Size | None
    has_logits: bool


Confidence = npt.NDArray[np.uint8]

FLIP = "flip"
# Of a list in one option: more classes or scales than that are of no use.
MAX_ENTRIES = 256
SCALES = (0.25, 4.0)


def check_options(options: SegmentOptions, model: Model) -> None:
    """Checks options against the model: refuses what it cannot answer, whatever the image.

    Raises:
        InvalidRequest: an unknown format or class, or options that do not go together.
        UnsupportedOption: the model lacks ``logits``; the message names the export option.
    """
    mask.check_options(options.formats, options.form)
    if options.classes:
        class_ids(options.classes, model.labels)
    augmented = read_augmentation(options.tta).wanted
    if augmented and options.smooth is False:
        raise InvalidRequest("tta blends logits, smooth=false takes ids: leave one of them out")
    wants_logits = {
        "smooth=true": options.smooth is True,
        "confidence=true": options.form.confidence,
        "format=confidence": mask.needs_confidence(options.formats, options.form),
        f"tta={','.join(options.tta)}": augmented,
    }
    for option, wanted in wants_logits.items():
        if wanted:
            require_logits(option, model)


def check_plan(plan: Plan, options: SegmentOptions, model: Model, settings: Settings) -> None:
    """Refuses what cannot be answered for an image of this size, before it is decoded.

    Raises:
        TooLarge: more views or pixels than a limit allows; the message names the setting.
        InvalidRequest, UnsupportedOption: tiles that cannot be blended.
    """
    count = plan.view_count
    if count == 1:
        return
    cause = f"an image of {plan.original} takes {count} views of {plan.model} by {model.name!r}"
    if count > settings.max_views:
        raise TooLarge(
            f"{cause}, more than max_views = {settings.max_views} allows; "
            f"send a smaller one, or ask for less tta",
            reason="views",
        )
    largest = max(grid.rows.canvas * grid.columns.canvas for grid in plan.grids)
    original = plan.original.height * plan.original.width
    if largest > max(original, settings.max_image_megapixels * 1e6):
        raise TooLarge(
            f"an image of {plan.original} is scaled to {largest / 1e6:.1f} megapixels by tta, more "
            f"than max_image_megapixels = {settings.max_image_megapixels:g} allows",
            reason="image_megapixels",
        )
    if options.smooth is False:
        raise InvalidRequest(
            f"{cause}, and smooth=false takes ids, which do not blend: leave it out"
        )
    require_logits(f"{cause}: blending them", model)


def require_logits(what: str, model: Model) -> None:
    """Raises UnsupportedOption, with the remedy, where the model returns labels alone."""
    if model.spec.logits_size is None:
        raise UnsupportedOption(
            f"{what} needs the model's logits, which {model.name!r} does not give; "
            f"export it with `segserve export --head mask,logits`"
        )


def read_augmentation(tta: tuple[str, ...]) -> Augmentation:
    """Reads test-time augmentation: ``flip`` and scales. The scale 1 is always included.

    Raises:
        InvalidRequest: neither; the message lists what is known.
    """
    if not tta:
        return PLAIN
    if len(tta) > MAX_ENTRIES:
        raise InvalidRequest(f"tta: {len(tta)} entries, expected at most {MAX_ENTRIES}")
    scales = {1.0}
    for entry in tta:
        text = entry.strip().lower()
        if text == FLIP:
            continue
        try:
            scales.add(read_decimal(text, "tta", *SCALES))
        except InvalidRequest:
            raise InvalidRequest(
                f"tta: {entry[:64]!r} is neither {FLIP!r} nor a scale from {SCALES[0]:g} to "
                f"{SCALES[1]:g}; for example tta=flip,0.75,1.25"
            ) from None
    flip = any(entry.strip().lower() == FLIP for entry in tta)
    return Augmentation(tuple(sorted(scales)), flip)


def class_ids(classes: tuple[str, ...], labels: LabelSet) -> tuple[int, ...]:
    """Returns the ids of classes, by name (in any case) or number.

    Raises:
        InvalidRequest: naming the unknown class and the known ones.
    """
    if len(classes) > MAX_ENTRIES:
        raise InvalidRequest(f"classes: {len(classes)} entries, expected at most {MAX_ENTRIES}")
    by_name = {name.lower(): index for index, name in enumerate(labels.names)}
    ids = []
    for wanted in classes:
        text = wanted.strip()
        found = by_name.get(text.lower())
        if found is None and (number := find_integer(text)) is not None:
            found = number if number < len(labels.names) else None
        if found is None:
            known = ", ".join(labels.names)
            raise InvalidRequest(
                f"unknown class {wanted[:64]!r}; expected a name or an id from 0 to "
                f"{len(labels.names) - 1}; known: {known}"
            )
        ids.append(found)
    return tuple(ids)


def keep_classes(
    labels: LabelMap, confidence: Confidence | None, classes: tuple[str, ...], known: LabelSet
) -> tuple[LabelMap, Confidence | None]:
    """Returns both with the pixels of other classes replaced: by the ignore label, and by 0."""
    values = np.iinfo(labels.dtype).max + 1
    table = np.full(values, known.ignore_label, labels.dtype)
    ids = list(class_ids(classes, known))
    table[ids] = ids
    if confidence is not None:
        kept = np.zeros(values, np.uint8)
        kept[ids] = 255
        confidence = np.asarray(_look_up(labels, kept) & confidence, np.uint8)
    return _look_up(labels, table), confidence


def _look_up(labels: LabelMap, table: LabelMap) -> LabelMap:
    # OpenCV's tables are of bytes alone, and several times faster than NumPy's.
    return cv2.LUT(labels, table) if labels.dtype == np.uint8 else table[labels]
