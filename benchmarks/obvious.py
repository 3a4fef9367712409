"""Does each stage the obvious way: what one writes first, with the usual libraries."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from PIL import Image

from benchmarks.engines.onnxruntime import open_on_cpu
from serving.formats.label_map import MaskView
from serving.imaging.geometry import Size
from serving.palette import plte

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


def restore_by_onnx(logits: Logits, size: Size, threads: int) -> Callable[[], Pixels]:
    """Returns a run of ONNX Runtime's Resize (aligned corners), ArgMax and Cast."""
    session = _session(logits, size, threads, confidence=False)
    return lambda: session.run(None, {"logits": logits[None]})[0][0]


def restore_both_by_onnx(logits: Logits, size: Size, threads: int) -> Callable[[], list[Pixels]]:
    """Returns a run of the same with Softmax and ReduceMax for the confidence."""
    session = _session(logits, size, threads, confidence=True)
    return lambda: [output[0] for output in session.run(None, {"logits": logits[None]})]


def _session(
    logits: Logits, size: Size, threads: int, confidence: bool
) -> onnxruntime.InferenceSession:
    shape, whole = [1, *logits.shape], [1, logits.shape[0], size.height, size.width]
    nodes = [
        helper.make_node(
            "Resize",
            ["logits", "", "", "sizes"],
            ["large"],
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        helper.make_node("ArgMax", ["large"], ["winner"], axis=1, keepdims=0),
        helper.make_node("Cast", ["winner"], ["mask"], to=TensorProto.UINT8),
    ]
    initializers = [helper.make_tensor("sizes", TensorProto.INT64, [4], whole)]
    outputs = ["mask"]
    if confidence:
        nodes += [
            helper.make_node("Softmax", ["large"], ["shares"], axis=1),
            helper.make_node("ReduceMax", ["shares"], ["largest"], axes=[1], keepdims=0),
            helper.make_node("Mul", ["largest", "white"], ["bright"]),
            helper.make_node("Round", ["bright"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["confidence"], to=TensorProto.UINT8),
        ]
        initializers.append(helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]))
        outputs.append("confidence")
    plane = [1, size.height, size.width]
    graph = helper.make_graph(
        nodes,
        "restore",
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, plane) for name in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return open_on_cpu(model, threads)


def decode(encoded: bytes) -> Pixels:
    """Decodes with Pillow."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def resize(photo: Pixels, size: Size) -> Pixels:
    """Resizes with Pillow, bilinear (it averages when it shrinks: more work, another picture)."""
    image = Image.fromarray(photo).resize((size.width, size.height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def statistics(view: MaskView) -> list[tuple[int, float]]:
    """Counts with NumPy, a mask for each class."""
    assert view.confidence is not None
    found = []
    for label in np.unique(view.labels):
        chosen = view.labels == label
        found.append((int(chosen.sum()), float(view.confidence[chosen].mean())))
    return found


def png(view: MaskView) -> bytes:
    """Encodes an indexed PNG with Pillow at its default level."""
    image = Image.fromarray(view.labels, mode="P")
    image.putpalette(plte(view.colors, view.ignore_label))
    return _saved(image, "PNG")


def overlay(view: MaskView) -> Image.Image:
    """Blends photo and colours with NumPy."""
    assert view.image is not None
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(view.colors)] = view.colors
    mixed = 0.5 * view.image + 0.5 * colors[view.labels]
    return Image.fromarray(mixed.astype(np.uint8))


def overlay_png(view: MaskView) -> bytes:
    """Blends with NumPy, encodes with Pillow at its default level."""
    return _saved(overlay(view), "PNG")


def overlay_jpeg(view: MaskView) -> bytes:
    """Blends with NumPy, encodes with Pillow at quality 90."""
    return _saved(overlay(view), "JPEG", quality=90)


def json_list(view: MaskView) -> bytes:
    """Returns the ids as a JSON list."""
    return json.dumps(view.labels.tolist()).encode()


def rle(view: MaskView) -> bytes:
    """Encodes run lengths with pycocotools, a mask for each class."""
    from pycocotools import mask as coco

    entries = []
    for label in np.unique(view.labels).tolist():
        encoded = coco.encode(np.asfortranarray(view.labels == label, dtype=np.uint8))
        entries.append(
            {
                "category_id": label,
                "area": int(coco.area(encoded)),
                "bbox": coco.toBbox(encoded).tolist(),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    return json.dumps(entries).encode()


def polygons(view: MaskView, tolerance: float = 0.0) -> bytes:
    """Traces OpenCV's contours (through pixel centres, not edges), a mask for each class."""
    features = []
    for label in np.unique(view.labels).tolist():
        mask = (view.labels == label).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        if tolerance:
            found = [cv2.approxPolyDP(contour, tolerance, True) for contour in found]
        features.append({"class_id": label, "rings": [c.reshape(-1, 2).tolist() for c in found]})
    return json.dumps(features).encode()


def _saved(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
