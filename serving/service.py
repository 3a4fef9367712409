"""The pipeline of one request: decode, prepare, batch, infer, restore, encode."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from serving.admission.admission import Admission
from serving.batching.admission import Reservation
from serving.formats import registry as mask
from serving.imaging.blending import Blender
from serving.imaging.geometry import Plan, Size, scale
from serving.imaging.restore import (
    Prediction,
    labels_suffice,
    restore_labels,
    restore_labels_and_confidence,
)
from serving.imaging.still import StillImage
from serving.models import families
from serving.models.model import Model
from serving.models.registry import Registry
from serving.models.response_cache import (
    ModelCache,
    StoredAnswer,
    digest_of,
    submit_cached,
)
from serving.observability.metrics import Metrics
from serving.observability.request_context import Timings
from serving.preparation import ImagePreparer, Prepared
from serving.requests import (
    Described,
    SegmentOptions,
    SegmentRequest,
    SegmentResult,
    check_options,
    keep_classes,
)
from serving.settings import Settings
from serving.tiling import blend_views

Pixels = npt.NDArray[np.uint8]


class Segmenter:
    """Runs requests through their stages; pure work goes to ``pool``, inference to the batcher."""

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        preparer: ImagePreparer,
        metrics: Metrics,
        settings: Settings,
        pool: Executor,
    ) -> None:
        self._registry = registry
        self._admission = admission
        self._preparer = preparer
        self._metrics = metrics
        self._settings = settings
        self._pool = pool

    def describe(self, name: str, version: int | None) -> Described:
        """Describes the model or, without a version, the family of that name.

        Raises:
            ModelNotFound: neither, or a family of models with different classes.
        """
        if version is None and self._registry.is_family(name):
            members = self._registry.members(name)
            has_logits = all(model.spec.logits_size is not None for model in members)
            return Described(name, 0, families.family_labels(name, members), None, has_logits)
        model = self._registry.get(name, version)
        has_logits = model.spec.logits_size is not None
        return Described(model.name, model.version, model.labels, model.spec.size, has_logits)

    async def segment(self, request: SegmentRequest, transport: str) -> SegmentResult:
        """Segments one image.

        Raises:
            SegserveError: see ``serving/errors.py``; every stage has its own.
        """
        costs = self._admission.costs
        with self._admission.enter(request.model, transport, len(request.data)) as in_flight:
            loop = asyncio.get_running_loop()
            timings = Timings()
            in_flight.timings = (timings,)
            deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
            model, image = await self._choose_model(request, timings)
            in_flight.hold(model)
            check_options(request.options, model)
            digest = b""
            if model.cache is not None:
                digest = await loop.run_in_executor(self._pool, digest_of, request.data)
                known = self._find_answer(model.cache, digest, request, deadline)
                if known is not None:
                    self._metrics.observe_stages(model.name, timings)
                    in_flight.response_bytes = sum(len(p.body) for p in known.parts.values())
                    return SegmentResult(
                        known.parts, model.name, model.version, known.image_size,
                        known.answer_size, timings,
                    )  # fmt: skip
            # What would be refused anyway is not decoded first.
            least_s = costs.predict_least(model.name, request.options.formats)
            with model.batcher.reserve(
                model.input_bytes, timeout_s=request.timeout_s, answer_s=least_s
            ) as reservation:
                prepared = await self._preparer.prepare(
                    image, model, timings, in_flight, request.options, deadline
                )
                found = await self._infer(
                    prepared, model, request.options, timings, deadline, reservation
                )
            size = _answer_size(prepared.plan, request.options)
            with costs.measure(model.name, request.options.formats, size.pixels):
                parts, answer_size = await loop.run_in_executor(
                    self._pool, self._answer, found, prepared, model, request.options, timings
                )
            self._metrics.observe_stages(model.name, timings)
            in_flight.response_bytes = sum(len(part.body) for part in parts.values())
            if model.cache is not None:
                answer = StoredAnswer(parts, prepared.plan.original, answer_size)
                model.cache.keep_answer(digest, request.options, answer)
            return SegmentResult(
                parts=parts,
                model=model.name,
                version=model.version,
                image_size=prepared.plan.original,
                answer_size=answer_size,
                timings=timings,
            )

    def _find_answer(
        self, cache: ModelCache, digest: bytes, request: SegmentRequest, deadline: float | None
    ) -> StoredAnswer | None:
        """Finds the answer to the same request; after its deadline there is none."""
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            return None
        return cache.find_answer(digest, request.options)

    async def _choose_model(
        self, request: SegmentRequest, timings: Timings
    ) -> tuple[Model, bytes | StillImage]:
        """Finds the named model, or of a family the one that fits the image best.

        Returns it with the image, whose header has been read where that was needed.
        """
        if request.version is not None or not self._registry.is_family(request.model):
            return self._registry.get(request.model, request.version), request.data
        still, size = await self._preparer.read_header(request.data, timings)
        return families.choose(request.model, self._registry.members(request.model), size), still

    async def _infer(
        self,
        prepared: Prepared,
        model: Model,
        options: SegmentOptions,
        timings: Timings,
        deadline: float | None,
        reservation: Reservation,
    ) -> Prediction | Blender:
        """Infers the only view, or several ones, which it blends into a label map."""
        left = None if deadline is None else deadline - asyncio.get_running_loop().time()
        target = _answer_size(prepared.plan, options)
        answer_s = self._admission.costs.predict(model.name, options.formats, target.pixels)
        if prepared.only is not None:
            inferred = await submit_cached(
                model.batcher,
                model.cache,
                self._pool,
                prepared.only,
                timeout_s=left,
                answer_s=answer_s,
                reservation=reservation,
                labels_suffice=not mask.needs_confidence(options.formats, options.form)
                and labels_suffice(prepared.plan.only_view, target, options.smooth),
            )
            timings.add("queue", inferred.queue_seconds, ended_s_ago=inferred.infer_seconds)
            timings.add("infer", inferred.infer_seconds)
            return inferred.prediction
        reservation.release()
        # How many views there are is known only now; some without the others are of no use.
        model.batcher.check_time(prepared.plan.view_count, left, answer_s)
        assert model.spec.logits_size is not None  # check_plan
        blender = Blender(
            prepared.plan,
            target,
            model.spec.logits_size,
            confidence=mask.needs_confidence(options.formats, options.form),
            classes=model.spec.num_classes,
        )
        await blend_views(
            prepared.views, blender, model.batcher, self._pool, timings,
            in_flight=self._settings.max_views_in_flight, deadline=deadline,
            reservation=reservation,
        )  # fmt: skip
        return blender

    def _answer(
        self,
        found: Prediction | Blender,
        prepared: Prepared,
        model: Model,
        options: SegmentOptions,
        timings: Timings,
    ) -> tuple[dict[str, mask.Encoded], Size]:
        target = _answer_size(prepared.plan, options)
        with timings.measure("restore"):
            confidence = None
            if isinstance(found, Blender):
                labels, confidence = found.labels, found.confidence
            elif mask.needs_confidence(options.formats, options.form):
                labels, confidence = restore_labels_and_confidence(
                    found, prepared.plan.only_view, target, options.smooth
                )
            else:
                labels = restore_labels(found, prepared.plan.only_view, target, options.smooth)
            if options.classes:
                labels, confidence = keep_classes(labels, confidence, options.classes, model.labels)
        with timings.measure("encode"):
            shown = mask.MaskView(
                labels,
                model.labels.names,
                model.labels.colors,
                model.labels.ignore_label,
                scale(prepared.photo, target) if mask.needs_image(options.formats) else None,
                confidence,
            )
            form = replace(options.form, max_polygons=self._settings.max_polygons)
            return {name: mask.encode(shown, name, form) for name in options.formats}, target


def _answer_size(layout: Plan, options: SegmentOptions) -> Size:
    return layout.original if options.size == "original" else layout.model
