"""How many pixels each class has, as JSON."""

from __future__ import annotations

import json

from serving.class_statistics import class_statistics
from serving.forms.mask_view import Encoded, MaskOptions, MaskView
from serving.palette import format_palette

MEDIA_TYPE = "application/json"


def write_stats(view: MaskView, options: MaskOptions) -> Encoded:
    """Every class in the order of the ids: pixels, share and, with ``confidence``, its mean."""
    classes: list[dict[str, object]] = []
    confidence = view.certain() if options.confidence else None
    for share in class_statistics(view.labels, view.names, confidence):
        entry: dict[str, object] = {
            "id": share.id,
            "name": share.name,
            "color": format_palette([view.colors[share.id]]),
            "pixels": share.pixels,
            "share": round(share.share, 6),
        }
        if share.mean_confidence is not None:
            entry["mean_confidence"] = round(share.mean_confidence, 4)
        classes.append(entry)
    height, width = view.labels.shape
    answer = {"height": height, "width": width, "classes": classes}
    return Encoded(
        json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode(), MEDIA_TYPE
    )
