"""PNGs whose pixel values are the data: class ids, or the network's confidence."""

from __future__ import annotations

from serving.forms import png
from serving.forms.mask_view import Encoded, MaskOptions, MaskView
from serving.palette import plte

MEDIA_TYPE = "image/png"


def write_png(view: MaskView, options: MaskOptions) -> Encoded:
    """An indexed PNG: pixel values are the class ids, PLTE holds the colours."""
    return Encoded(png.indexed(view.labels, plte(view.colors, view.ignore_label)), MEDIA_TYPE)


def write_confidence(view: MaskView, options: MaskOptions) -> Encoded:
    """A gray PNG of the confidence, 255 is certain."""
    return Encoded(png.gray(view.certain()), MEDIA_TYPE)
