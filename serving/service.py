"""The pipeline of one request: decode, prepare, batch, infer, restore, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving import image, mask, restore
from serving.engine import Prediction
from serving.errors import InvalidRequest, QueueFull, SegserveError, UnsupportedOption
from serving.geometry import Plan, Size, plan, prepare
from serving.metrics import Metrics, Timings
from serving.palette import LabelSet
from serving.registry import Model, Registry
from serving.requests import SegmentOptions, SegmentRequest, SegmentResult
from serving.settings import Settings

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prepared:
    """A decoded photo, and its copy in the network's size (both uint8 ``[.,.,3]`` RGB)."""

    photo: Pixels
    pixels: Pixels
    plan: Plan


class Segmenter:
    """Runs requests through the stages; pure work goes to ``pool``, inference to the batcher."""

    def __init__(
        self, registry: Registry, metrics: Metrics, settings: Settings, pool: Executor
    ) -> None:
        self.registry = registry
        self.metrics = metrics
        self.settings = settings
        self.pool = pool
        self.inflight = 0

    async def segment(self, request: SegmentRequest, transport: str) -> SegmentResult:
        """Segments one image.

        Raises:
            SegserveError: see ``serving/errors.py``; every stage has its own.
        """
        with self.observe(request.model, transport, len(request.data)) as observed:
            model = self.registry.get(request.model, request.version)
            check_options(request.options, model)
            loop = asyncio.get_running_loop()
            timings = Timings()
            deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
            prepared = await loop.run_in_executor(
                self.pool, self.prepare, request.data, model, timings
            )
            inferred = await model.batcher.submit(
                prepared.pixels, timeout_s=None if deadline is None else deadline - loop.time()
            )
            timings.add("queue", inferred.queue_seconds)
            timings.add("infer", inferred.infer_seconds)
            encoded, answer_size = await loop.run_in_executor(
                self.pool, self._answer, inferred.prediction, prepared, model, request.options,
                timings,
            )  # fmt: skip
            self.metrics.observe_stages(model.name, timings)
            observed.response_bytes = len(encoded.body)
            return SegmentResult(
                body=encoded.body,
                media_type=encoded.media_type,
                model=model.name,
                version=model.version,
                image_size=prepared.plan.original,
                answer_size=answer_size,
                timings=timings,
            )

    def prepare(self, data: bytes, model: Model, timings: Timings) -> Prepared:
        """Decodes an image and resizes it to the model's size. Runs on a pool thread."""
        with timings.measure("decode"):
            photo = image.decode(data, max_megapixels=self.settings.max_image_megapixels)
        with timings.measure("preprocess"):
            layout = plan(Size(*photo.shape[:2]), model.spec.size, model.folder.resize)
            return Prepared(photo, prepare(photo, layout), layout)

    def _answer(
        self,
        prediction: Prediction,
        prepared: Prepared,
        model: Model,
        options: SegmentOptions,
        timings: Timings,
    ) -> tuple[mask.Encoded, Size]:
        chosen = mask.FORMATS[options.format]
        original, size = prepared.plan.original, prepared.plan.model
        target = original if options.size == "original" else size
        with timings.measure("restore"):
            labels = restore_labels(prediction, size, target, options.smooth)
            if options.classes:
                labels = keep_classes(labels, options.classes, model.labels)
            confidence = None
            if (chosen.needs_confidence or options.confidence) and prediction.logits is not None:
                confidence = restore.confidence_from_logits(prediction.logits, size, target)
        with timings.measure("encode"):
            photo = None
            if chosen.needs_image:
                photo = prepared.photo if target == original else prepared.pixels
            view = mask.MaskView(
                labels,
                model.labels.names,
                model.labels.colors,
                model.labels.ignore_label,
                photo,
                confidence,
            )
            return mask.encode(view, options.format), target

    @contextmanager
    def observe(self, model: str, transport: str, request_bytes: int) -> Iterator[Observation]:
        """Counts and times a request, whatever its end; refuses it when too many are going on."""
        start, observation = time.perf_counter(), Observation()
        outcome = "ok"
        self.inflight += 1
        self.metrics.inflight.set(self.inflight)
        try:
            if self.inflight > self.settings.max_inflight_requests:
                self.metrics.rejected.labels(self.registry.label(model), "inflight").inc()
                raise QueueFull(
                    f"{self.settings.max_inflight_requests} requests are being worked on already "
                    f"(setting max_inflight_requests); try again later"
                )
            yield observation
        except SegserveError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception:
            outcome = "internal"
            raise
        finally:
            self.inflight -= 1
            self.metrics.inflight.set(self.inflight)
            self.metrics.observe_request(
                self.registry.label(model),
                transport,
                outcome,
                time.perf_counter() - start,
                request_bytes,
                observation.response_bytes,
            )


@dataclass
class Observation:
    """Filled in by the work that is observed."""

    response_bytes: int = 0


def check_options(options: SegmentOptions, model: Model) -> None:
    """Refuses, before any work, what cannot be answered.

    Raises:
        InvalidRequest: an unknown format or class, or options that do not go together.
        UnsupportedOption: the model lacks ``logits``; the message names the export option.
    """
    chosen = mask.FORMATS.get(options.format)
    if chosen is None:
        raise InvalidRequest(f"unknown format {options.format!r}; known: {', '.join(mask.FORMATS)}")
    if options.classes:
        class_ids(options.classes, model.labels)
    if options.confidence and options.format not in ("stats", "confidence"):
        raise InvalidRequest("confidence=true goes with format=stats or format=confidence")
    wants_logits = {
        "smooth=true": options.smooth is True,
        "confidence=true": options.confidence,
        f"format={options.format}": chosen.needs_confidence,
    }
    if model.spec.logits_size is None:
        for option, wanted in wants_logits.items():
            if wanted:
                raise UnsupportedOption(
                    f"{option} needs the model's logits, which {model.name!r} does not give; "
                    f"export it with `segserve export --head mask,logits`"
                )


def restore_labels(
    prediction: Prediction, model: Size, target: Size, smooth: bool | None
) -> Pixels:
    """The label map uint8 ``[H0,W0]``; ``smooth`` None means by logits where there are any."""
    if prediction.logits is not None:
        if smooth is not False:
            return restore.labels_from_logits(prediction.logits, model, target)
        labels = restore.model_labels(prediction.logits, model)
    else:
        assert prediction.mask is not None
        labels = prediction.mask
    return labels if target == model else restore.labels_nearest(labels, target)


def class_ids(classes: tuple[str, ...], labels: LabelSet) -> tuple[int, ...]:
    """Ids of names (in any case) or numbers.

    Raises:
        InvalidRequest: naming the unknown class and the known ones.
    """
    by_name = {name.lower(): index for index, name in enumerate(labels.names)}
    ids = []
    for wanted in classes:
        found = by_name.get(wanted.strip().lower())
        if found is None and wanted.strip().isdigit() and int(wanted) < len(labels.names):
            found = int(wanted)
        if found is None:
            raise InvalidRequest(f"unknown class {wanted!r}; known: {', '.join(labels.names)}")
        ids.append(found)
    return tuple(ids)


def keep_classes(labels: Pixels, classes: tuple[str, ...], known: LabelSet) -> Pixels:
    """``labels`` with every other class replaced by the ignore label."""
    table = np.full(256, known.ignore_label, np.uint8)
    ids = list(class_ids(classes, known))
    table[ids] = ids
    return table[labels]
