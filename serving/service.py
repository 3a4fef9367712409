"""The pipeline of one request: decode, prepare, batch, infer, restore, encode."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serving.admission.admission import Admission, RequestInFlight
from serving.batching.admission import Reservation
from serving.errors import DeadlineExceeded, UnsupportedOption
from serving.formats import registry as mask
from serving.imaging.blending import Blender
from serving.imaging.decode import check_size, check_still, decode_here
from serving.imaging.decoder_pool import DecoderPool, Decoding
from serving.imaging.geometry import Plan, Size, plan, scale
from serving.imaging.header import describe, read_still
from serving.imaging.restore import (
    Prediction,
    labels_suffice,
    restore_labels,
    restore_labels_and_confidence,
)
from serving.imaging.still import StillImage
from serving.imaging.turns import Turns
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
from serving.requests import (
    SegmentOptions,
    SegmentRequest,
    SegmentResult,
    check_options,
    check_plan,
    keep_classes,
    read_augmentation,
)
from serving.settings import Settings
from serving.tiling import Views, blend_views

Pixels = npt.NDArray[np.uint8]

# Ending a decoder costs more than the rest of most images: what is abandoned may get this far.
ABANDONED_S = 0.1
# A thread that is late by its own clock is answered for after this.
OVERDUE_S = 0.05


@dataclass(frozen=True)
class Prepared:
    """A decoded photo (uint8 ``[H0,W0,3]`` RGB) and what the network is to see of it.

    ``only`` is the network's input (uint8 ``[H,W,3]``) where that is a single view.
    """

    photo: Pixels
    views: Views
    only: Pixels | None

    @property
    def plan(self) -> Plan:
        return self.views.plan

    @property
    def pixels(self) -> Pixels:
        """Returns the network's input, where one tensor holds the whole image.

        Raises:
            UnsupportedOption: it takes several.
        """
        if self.only is None:
            raise UnsupportedOption(
                f"an image of {self.plan.original} takes {self.plan.view_count} tiles of "
                f"{self.plan.model}, a tensor holds one; use segment, or send the pixels of a tile"
            )
        return self.only


class Segmenter:
    """Runs requests through their stages; pure work goes to ``pool``, inference to the batcher.

    Args:
        decoders: where images are decoded; None decodes in this process, for callers that are
            trusted.
    """

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        metrics: Metrics,
        settings: Settings,
        pool: Executor,
        decoders: DecoderPool | None = None,
    ) -> None:
        self._registry = registry
        self._admission = admission
        self._metrics = metrics
        self._settings = settings
        self._pool = pool
        self._decoders = decoders
        # One thread is left for answers: what is inferred goes before what is to be decoded.
        turns = settings.pool_threads - 1
        self._turns = Turns(max(1, min(turns, decoders.size) if decoders else turns))

    def describe(self, name: str, version: int | None) -> families.Described:
        """Returns what clients are told of the model or, without a version, the family ``name``.

        Raises:
            ModelNotFound: neither, or a family of models with different classes.
        """
        return families.find_described(self._registry, name, version)

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
                prepared = await self.prepare(
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
        loop = asyncio.get_running_loop()
        still = await loop.run_in_executor(self._pool, self._read_header, request.data, timings)
        header = describe(still)
        check_size(header, self._settings.max_image_megapixels)
        size = Size(header.height, header.width)
        return families.choose(request.model, self._registry.members(request.model), size), still

    def _read_header(self, data: bytes, timings: Timings) -> StillImage:
        with timings.measure("decode"):
            return read_still(data, self._settings.allowed_formats)

    async def prepare(
        self,
        image: bytes | StillImage,
        model: Model,
        timings: Timings,
        in_flight: RequestInFlight,
        options: SegmentOptions = SegmentOptions(),  # noqa: B008 (frozen)
        deadline: float | None = None,
    ) -> Prepared:
        """Decodes an image and resizes it for the model's views, on a pool thread.

        Its pixels count against ``max_inflight_megapixels`` until the request is done.

        Args:
            image: encoded, or what has been read of it already.
            deadline: by the event loop's clock.

        Raises:
            DeadlineExceeded: it, or ``queue_timeout_ms``, passed before the image was decoded.
            SegserveError: the image, or an option, is wrong for this model.
        """
        loop = asyncio.get_running_loop()
        await self._wait_for_decoder(model, deadline)
        # The loop's clock is read again by a thread: it may stand still for as long as it is busy.
        ends = None if deadline is None else time.monotonic() + deadline - loop.time()
        decoding = Decoding()

        def done(_: Future[Prepared]) -> None:
            # After a loop was closed, nobody waits for a turn.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._turns.release)

        try:
            future = self._pool.submit(
                self._prepare, image, model, timings, in_flight, options, ends, decoding
            )
        except BaseException:
            self._turns.release()
            raise
        future.add_done_callback(done)
        # The thread checks the clock itself. This is for where it waits for something else: for its
        # turn in the pool, or for a decoder to be started.
        left_s = None if deadline is None else max(0.0, deadline - loop.time()) + OVERDUE_S
        waited = asyncio.wrap_future(future)
        try:
            await asyncio.wait({waited}, timeout=left_s)
        except asyncio.CancelledError:
            if not waited.cancel():
                waited.exception()  # Retrieved, or asyncio logs it.
            # The turn is kept for as long as a decoder is busy with it, which is not long.
            loop.call_later(ABANDONED_S, decoding.abort, "cancelled")
            raise
        try:
            if waited.cancel():
                decoding.abort("deadline")
                raise DeadlineExceeded("the deadline passed before the image was decoded")
            return waited.result()
        except DeadlineExceeded:
            model.batcher.observer.rejected("deadline")
            raise

    async def _wait_for_decoder(self, model: Model, deadline: float | None) -> None:
        """Takes a turn at decoding, within the request's deadline and the server's own limit.

        Raises:
            DeadlineExceeded: none came in time.
        """
        limit_s, source = self._settings.queue_timeout_ms / 1000.0, "setting queue_timeout_ms"
        if deadline is not None:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                model.batcher.observer.rejected("deadline")
                raise DeadlineExceeded("the deadline had passed before the image was decoded")
            if left_s < limit_s:
                limit_s, source = left_s, "the request's own deadline"
        try:
            await self._turns.take(limit_s)
        except TimeoutError:
            model.batcher.observer.rejected("deadline")
            raise DeadlineExceeded(
                f"no decoder was free within {limit_s * 1000:.0f} ms ({source})"
            ) from None

    def _prepare(
        self,
        image: bytes | StillImage,
        model: Model,
        timings: Timings,
        in_flight: RequestInFlight,
        options: SegmentOptions,
        deadline: float | None,
        decoding: Decoding,
    ) -> Prepared:
        still = image
        if isinstance(still, bytes):
            still = self._read_header(still, timings)
        with timings.measure("decode"):
            check_still(still, self._settings.max_image_megapixels)
            header = describe(still)
        layout = plan(
            Size(header.height, header.width),
            model.spec.size,
            model.folder.resize,
            tile_overlap=model.folder.tile_overlap,
            augmentation=read_augmentation(options.tta),
        )
        check_plan(layout, options, model, self._settings)
        self._admission.reserve_pixels(in_flight, layout.original.pixels)
        with timings.measure("decode"):
            if self._decoders is None:
                photo = decode_here(still)
            else:
                photo = self._decoders.decode(still, decoding, deadline)
        with timings.measure("preprocess"):
            views = Views.of(photo, layout)
            return Prepared(photo, views, views.pixels(0) if layout.view_count == 1 else None)

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
