"""Prepares an image for the network: decodes it and resizes it, on pool threads, within a deadline.

As many images are decoded at a time as there are decoders: first come, first served.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.admission.admission import Admission, RequestInFlight
from serving.errors import DeadlineExceeded, UnsupportedOption
from serving.imaging.decode import check_size, check_still, decode_here, describe, read_still
from serving.imaging.decoder_pool import DecoderPool, Decoding
from serving.imaging.geometry import Plan, Size, cut, plan, scale
from serving.imaging.still import StillImage
from serving.models.model import Model
from serving.observability.request_context import Timings
from serving.requests import SegmentOptions, check_plan, read_augmentation
from serving.settings import Settings

Pixels = npt.NDArray[np.uint8]

# Ending a decoder costs more than the rest of most images: what is abandoned may get this far.
ABANDONED_S = 0.1
# A thread that is late by its own clock is answered for after this.
OVERDUE_S = 0.05


@dataclass(frozen=True)
class Views:
    """A photo (uint8 ``[H0,W0,3]`` RGB) in every size that its plan's views are cut from."""

    plan: Plan
    canvases: Mapping[Size, Pixels]

    @classmethod
    def of(cls, photo: Pixels, plan: Plan) -> Views:
        """Resizes ``photo`` to every canvas of its plan."""
        sizes = {Size(grid.rows.canvas, grid.columns.canvas) for grid in plan.grids}
        return cls(plan, {size: scale(photo, size) for size in sizes})

    def pixels(self, index: int) -> Pixels:
        """Returns the network's input for one view, uint8 ``[H,W,3]``."""
        view = self.plan.views[index]
        return cut(self.canvases[view.canvas], view)


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


class ImagePreparer:
    """Prepares the images of one server.

    Args:
        decoders: where images are decoded; None decodes in this process, for callers that are
            trusted.
    """

    def __init__(
        self,
        admission: Admission,
        settings: Settings,
        pool: Executor,
        decoders: DecoderPool | None = None,
    ) -> None:
        self._admission = admission
        self._settings = settings
        self._pool = pool
        self._decoders = decoders
        # One thread is left for answers: what is inferred goes before what is to be decoded.
        turns = settings.pool_threads - 1
        self._turns = Turns(max(1, min(turns, decoders.size) if decoders else turns))

    async def read_header(self, data: bytes, timings: Timings) -> tuple[StillImage, Size]:
        """Reads an image's header on a pool thread; returns what it holds, and its upright size.

        Raises:
            TooLarge: more pixels than ``max_image_megapixels``.
            SegserveError: the image is wrong.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._read_header, data, timings)

    def _read_header(self, data: bytes, timings: Timings) -> tuple[StillImage, Size]:
        with timings.measure("decode"):
            still = read_still(data, self._settings.allowed_formats)
            header = describe(still)
            check_size(header, self._settings.max_image_megapixels)
            return still, Size(header.height, header.width)

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
            still, _ = self._read_header(still, timings)
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


class Turns:
    """A semaphore whose waits end in time. Of one event loop, from which alone it is used.

    Args:
        count: turns that are taken at a time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, timeout_s: float | None) -> None:
        """Waits for a turn, which :meth:`release` gives back. A cancelled wait takes none.

        Raises:
            TimeoutError: none came within ``timeout_s``.
        """
        if self._free:
            self._free -= 1
            return
        if timeout_s is not None and timeout_s <= 0:
            raise TimeoutError
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was given just before.
                self.release()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def release(self) -> None:
        """Gives a turn back: to whoever waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())
