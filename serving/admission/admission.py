"""Decides who may enter the server: counts what is in flight, and refuses what is too much.

What a request's head already decides is decided before the body is read: overload costs little
then. Only what is certain is refused there: a named model that would refuse the request whatever
its body holds. All else, other errors too, is left to the way that every request goes. Who enters
a model's queue is decided by ``batching/admission.py``, for a head as for a body.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from serving.batching.admission import Average
from serving.errors import (
    CANCELLED,
    INTERNAL,
    ClientGone,
    QueueFull,
    SegserveError,
    TooManyRequests,
)
from serving.models.model import Model
from serving.models.registry import Registry
from serving.observability.metrics import Metrics
from serving.observability.request_context import Timings, current_context
from serving.settings import Settings


@dataclass(frozen=True)
class RequestHead:
    """The facts about an inference that are known before its body is read.

    Attributes:
        timeout_s: the transport's deadline, from now; None where there is none.
        priority: None where the body holds it.
        formats: of the answer; empty where the body says, or none is made.
        request_bytes: of the body, as its head says; 0 where it does not.
        is_certain: the model's name cannot be changed by what follows: a request for a model that
            does not exist ends then, too.
    """

    model: str
    version: int | None
    timeout_s: float | None
    priority: int | None = None
    formats: Sequence[str] = ()
    request_bytes: int = 0
    is_certain: bool = False


@dataclass
class RequestInFlight:
    """One request between its entry and its end, filled in by those who work on it.

    Attributes:
        model: once it is known; it is not unloaded before the request is done.
        timings: of every image of the request.
        is_failure: whether an error was the server's.
        pixels: of its decoded images, reserved until it is done.
        is_done: whether it has ended, with an answer or without; nothing is reserved after that.
    """

    response_bytes: int = 0
    model: Model | None = None
    timings: tuple[Timings, ...] = ()
    is_failure: bool = True
    pixels: int = 0
    is_done: bool = False

    def hold(self, model: Model) -> None:
        """Names the model that answers, and keeps it loaded."""
        self.model = model
        model.users.enter()

    def finish(self, outcome: str, seconds: float) -> None:
        """Releases the model, and adds the request to its statistics."""
        if self.model is None:
            return
        self.model.users.leave()
        if outcome == "ok":
            images = [timings.seconds for timings in self.timings]
            self.model.statistics.add_success(seconds, images)
        elif self.is_failure:
            self.model.statistics.add_failure(seconds)


class AnswerCosts:
    """The seconds that restoring and encoding an answer takes, by model and output formats.

    It is learnt from the last answers, for an answer and for a megapixel.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], Average] = {}
        self._megapixels: dict[tuple[str, ...], Average] = {}

    @contextmanager
    def measure(self, model: str, formats: Sequence[str], pixels: int) -> Iterator[None]:
        """Learns how long the block takes to make an answer of ``pixels``, unless it raises."""
        start = perf_counter()
        yield
        seconds, key = perf_counter() - start, _key(model, formats)
        self._answers.setdefault(key, Average()).learn(seconds)
        self._megapixels.setdefault(key, Average()).learn(seconds / pixels * 1e6)

    def predict_least(self, model: str, formats: Sequence[str]) -> float:
        """Returns the seconds for an image of unknown size: rather too few, as sizes differ."""
        known = self._answers.get(_key(model, formats))
        return known.predict(-1.0) or 0.0 if known else 0.0

    def predict(self, model: str, formats: Sequence[str], pixels: int) -> float:
        """Returns the seconds for an answer of ``pixels``; 0 where nothing is known."""
        known = self._megapixels.get(_key(model, formats))
        return (known.predict() or 0.0) * pixels / 1e6 if known else 0.0


def _key(model: str, formats: Sequence[str]) -> tuple[str, ...]:
    # Both are known to the server, so there are not many.
    return model, *sorted(set(formats))


class Admission:
    """The admission to one server; ``costs`` are what its answers have taken."""

    def __init__(self, registry: Registry, metrics: Metrics, settings: Settings) -> None:
        self.costs = AnswerCosts()
        self.inflight = 0
        self._registry = registry
        self._metrics = metrics
        self._max_requests = settings.max_inflight_requests
        self._max_megapixels = settings.max_inflight_megapixels
        self._pixels = 0
        self._pixels_lock = threading.Lock()

    def check_head(self, head: RequestHead, transport: str) -> None:
        """Returns if the request may continue, which promises nothing.

        A refusal is counted and timed as one that comes later would be.

        Raises:
            QueueFull, PredictedLate, ModelNotFound, NotReady: as ``Segmenter.segment``.
        """
        if head.timeout_s is not None and head.timeout_s <= 0.0:
            return
        try:
            model = self._registry.get(head.model, head.version)
        except SegserveError as error:
            # Of a family the image's size chooses the model.
            if not head.is_certain or self._registry.is_family(head.model):
                return
            with self.enter(head.model, transport, head.request_bytes):
                raise error
        refusal: TooManyRequests | None = None
        if self.inflight < self._max_requests:
            refusal = self._find_refusal(model, head)
            if refusal is None:
                return
        # Refuses by itself where too many requests are in flight.
        with self.enter(head.model, transport, head.request_bytes) as request:
            request.hold(model)
            if refusal is not None:
                raise refusal

    def _find_refusal(self, model: Model, head: RequestHead) -> TooManyRequests | None:
        try:
            model.batcher.check(
                model.input_bytes,
                timeout_s=head.timeout_s,
                priority=head.priority,
                answer_s=self.costs.predict_least(model.name, head.formats),
            )
        except TooManyRequests as error:
            return error
        except SegserveError:
            return None
        return None

    @contextmanager
    def enter(self, name: str, transport: str, request_bytes: int) -> Iterator[RequestInFlight]:
        """Counts and times one request for ``name``, a model or a family, however it ends.

        Raises:
            QueueFull: too many are in flight.
        """
        start, request, context = time.perf_counter(), RequestInFlight(), current_context.get()
        outcome = "ok"
        self.inflight += 1
        self._metrics.inflight.set(self.inflight)
        try:
            if self.inflight > self._max_requests:
                raise QueueFull(
                    f"{self._max_requests} requests are being worked on already "
                    f"(setting max_inflight_requests); try again later",
                    reason="inflight",
                )
            if context is not None:
                context.count_request()
            yield request
        except SegserveError as error:
            outcome = error.code
            request.is_failure = error.is_failure
            raise
        except asyncio.CancelledError:
            outcome = CANCELLED
            raise
        except Exception:
            outcome = INTERNAL
            raise
        finally:
            seconds = time.perf_counter() - start
            self._release_pixels(request)
            request.finish(outcome, seconds)
            model = request.model
            if context is not None and model is not None:
                context.note_images(model.name, model.version, request.timings)
            self.inflight -= 1
            self._metrics.inflight.set(self.inflight)
            self._metrics.observe_request(
                self._registry.label(name if model is None else model.name),
                transport,
                outcome,
                seconds,
                request_bytes,
                request.response_bytes,
            )

    def reserve_pixels(self, request: RequestInFlight, pixels: int) -> None:
        """Reserves room for a decoded image until the request is done. Any thread may call it.

        A small file can hold a large image: requests alone would bound memory badly.

        Raises:
            QueueFull: the images of all requests have too many pixels; one alone always fits.
            ClientGone: the request has ended while a thread was still at its image.
        """
        limit = self._max_megapixels
        with self._pixels_lock:
            if request.is_done:
                raise ClientGone("the request ended before its image was decoded")
            if self._pixels and self._pixels + pixels > limit * 1e6:
                raise QueueFull(
                    f"images of {self._pixels / 1e6:.1f} megapixels are being worked on already, "
                    f"the limit is {limit:g} (setting max_inflight_megapixels); try again later",
                    reason="inflight_megapixels",
                )
            self._pixels += pixels
            request.pixels += pixels

    def _release_pixels(self, request: RequestInFlight) -> None:
        with self._pixels_lock:
            self._pixels -= request.pixels
            request.pixels = 0
            request.is_done = True
