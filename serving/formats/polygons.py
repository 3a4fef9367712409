"""GeoJSON (RFC 7946): one polygon with its holes for each connected region, in pixels.

Coordinates are corners of pixels, x to the right and y down: the whole image is ``0,0`` to ``W,H``.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.formats import rings as boundaries
from serving.formats import simplification
from serving.formats.label_map import Encoded, MaskOptions, MaskView
from serving.formats.regions import Regions, find_regions
from serving.formats.rings import Indices, Rings, trace_rings
from serving.formats.simplification import simplify
from serving.imaging.jit import compiled
from serving.palette import label_type

MEDIA_TYPE = "application/geo+json"

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


def write_polygons(view: MaskView, options: MaskOptions) -> Encoded:
    """Returns a FeatureCollection; drawn back at tolerance 0 it gives the label map again.

    Pixels without a class, the ignore label among them, get no polygon. ``score`` is the mean
    confidence of the region's pixels, 0 to 1; ``id`` numbers the regions whatever the options.
    With a tolerance, regions that are narrower than it may vanish.

    Raises:
        InvalidRequest: more than ``max_polygons`` regions.
    """
    regions = find_regions(view.labels, view.certain() if options.confidence else None)
    wanted = regions.area >= (options.min_area or 0)
    wanted &= regions.label < len(view.names)
    count = int(wanted.sum())
    if count > options.max_polygons:
        raise InvalidRequest(
            f"the mask has {count} regions, at most {options.max_polygons} polygons are written "
            f"(setting max_polygons); leave out the small ones with min_area",
            reason="polygons",
        )
    tolerance = options.tolerance or 0.0
    rings = trace_rings(view.labels, regions, wanted, junctions=tolerance > 0)
    if tolerance > 0:
        rings = simplify(rings, tolerance)
    height, width = view.labels.shape
    head = f'{{"type":"FeatureCollection","width":{width},"height":{height},"features":['
    features = _features(rings, regions, view, options.confidence)
    return Encoded(b"".join((head.encode(), b",".join(features), b"]}")), MEDIA_TYPE)


def warm(classes: int = 2) -> None:
    """Compiles the loops of this format, so that no request waits for it."""
    boundaries.warm(classes)
    simplification.warm()
    labels = np.eye(2, dtype=label_type(classes))
    certain = np.eye(2, dtype=np.uint8)
    view = MaskView(labels, ("a", "b"), ((0, 0, 0),) * 2, confidence=certain)
    write_polygons(view, MaskOptions(confidence=True))


def _features(rings: Rings, regions: Regions, view: MaskView, scored: bool) -> list[bytes]:
    if not len(rings.region):
        return []
    text, ends = _write(rings.x, rings.y, rings.first)
    written = text.tobytes()
    pieces = [written[a:b] for a, b in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    # A region's rings side by side, its exterior first.
    is_hole = _doubled_areas(rings.x, rings.y, rings.first) < 0
    order = np.lexsort((is_hole, rings.region))
    owners = rings.region[order]
    begins = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
    names = [json.dumps(name, ensure_ascii=False) for name in view.names]
    features = []
    for begin, end in zip(begins, [*begins[1:], len(order)], strict=True):
        region = owners[begin]
        label, area = int(regions.label[region]), int(regions.area[region])
        score = ""
        if scored:
            score = f',"score":{round(int(regions.confidence_sum[region]) / (255 * area), 4)}'
        properties = f'{{"class_id":{label},"class":{names[label]},"area":{area}{score}}}'
        coordinates = b",".join(pieces[k] for k in order[begin:end].tolist())
        features.append(
            b'{"type":"Feature","id":%d,"properties":%b,'
            b'"geometry":{"type":"Polygon","coordinates":[%b]}}'
            % (region, properties.encode(), coordinates)
        )
    return features


@compiled
def _doubled_areas(x: Indices, y: Indices, first: Indices) -> Counts:
    """Returns twice the signed area of each ring."""
    areas = np.zeros(len(first) - 1, np.int64)
    for ring in range(len(areas)):
        before = first[ring + 1] - 1
        for k in range(first[ring], first[ring + 1]):
            areas[ring] += np.int64(x[before]) * y[k] - np.int64(x[k]) * y[before]
            before = k
    return areas


@compiled
def _write(x: Indices, y: Indices, first: Indices) -> tuple[Bytes, Counts]:
    """Returns each ring as JSON, its first point again at its end; and where each text ends."""
    rings = len(first) - 1
    # Twice "[,]," and ten digits at most, for each point.
    text = np.empty((len(x) + rings) * 24 + 2 * rings, np.uint8)
    ends = np.empty(rings, np.int64)
    at = 0
    for ring in range(rings):
        begin, count = first[ring], first[ring + 1] - first[ring]
        text[at] = 91  # [
        at += 1
        for k in range(count + 1):
            point = begin + k % count
            text[at] = 91
            at = _write_number(x[point], text, at + 1)
            text[at] = 44  # ,
            at = _write_number(y[point], text, at + 1)
            text[at], text[at + 1] = 93, 44  # ],
            at += 2
        text[at - 1] = 93
        ends[ring] = at
    return text[:at].copy(), ends


@compiled
def _write_number(number: int, text: Bytes, at: int) -> int:
    """Writes the decimal digits of a number that is not negative; returns the index behind them."""
    digits, rest = 1, number // 10
    while rest:
        digits, rest = digits + 1, rest // 10
    for k in range(at + digits - 1, at - 1, -1):
        text[k] = 48 + number % 10
        number //= 10
    return at + digits
