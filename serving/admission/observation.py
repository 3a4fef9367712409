"""Counts and times requests, whatever their end, and refuses those that are too many at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import CANCELLED, INTERNAL, ClientGone, QueueFull, SegserveError
from serving.models.model import Model
from serving.models.registry import Registry
from serving.observability.metrics import Metrics, Timings
from serving.observability.request_context import current_call
from serving.settings import Settings


@dataclass
class Observation:
    """Filled in by the work that is observed.

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
        """Names the model that answers."""
        self.model = model
        model.users.enter()

    def finish(self, outcome: str, seconds: float) -> None:
        """Lets go of the model, and notes the request in its statistics."""
        if self.model is None:
            return
        self.model.users.leave()
        if outcome == "ok":
            images = [timings.seconds for timings in self.timings]
            self.model.statistics.add_success(seconds, images)
        elif self.is_failure:
            self.model.statistics.add_failure(seconds)


class Observer:
    """Knows how many requests are going on."""

    def __init__(self, registry: Registry, metrics: Metrics, settings: Settings) -> None:
        self.registry = registry
        self.metrics = metrics
        self.max_inflight_requests = settings.max_inflight_requests
        self.max_inflight_megapixels = settings.max_inflight_megapixels
        self.inflight = 0
        self._pixels = 0
        self._pixels_lock = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether one more request would be one too many."""
        return self.inflight >= self.max_inflight_requests

    def reserve_pixels(self, observation: Observation, pixels: int) -> None:
        """Makes room for a decoded image until the request is done. Any thread may call it.

        A small file can hold a large image: requests alone would bound memory badly.

        Raises:
            QueueFull: the images of all requests have too many pixels; one alone always fits.
            ClientGone: the request has ended while a thread was still at its image.
        """
        limit = self.max_inflight_megapixels
        with self._pixels_lock:
            if observation.is_done:
                raise ClientGone("the request ended before its image was decoded")
            if self._pixels and self._pixels + pixels > limit * 1e6:
                raise QueueFull(
                    f"images of {self._pixels / 1e6:.1f} megapixels are being worked on already, "
                    f"the limit is {limit:g} (setting max_inflight_megapixels); try again later",
                    reason="inflight_megapixels",
                )
            self._pixels += pixels
            observation.pixels += pixels

    def _release_pixels(self, observation: Observation) -> None:
        with self._pixels_lock:
            self._pixels -= observation.pixels
            observation.pixels = 0
            observation.is_done = True

    @contextmanager
    def observe(self, name: str, transport: str, request_bytes: int) -> Iterator[Observation]:
        """Observes one request for ``name``, a model or a family.

        Raises:
            QueueFull: too many are going on.
        """
        start, observation, call = time.perf_counter(), Observation(), current_call.get()
        outcome = "ok"
        self.inflight += 1
        self.metrics.inflight.set(self.inflight)
        try:
            if self.inflight > self.max_inflight_requests:
                raise QueueFull(
                    f"{self.max_inflight_requests} requests are being worked on already "
                    f"(setting max_inflight_requests); try again later",
                    reason="inflight",
                )
            if call is not None:
                call.count_request()
            yield observation
        except SegserveError as error:
            outcome = error.code
            self.metrics.count_refusal(error, self.registry.label(name))
            observation.is_failure = error.is_failure
            raise
        except asyncio.CancelledError:
            outcome = CANCELLED
            raise
        except Exception:
            outcome = INTERNAL
            raise
        finally:
            seconds = time.perf_counter() - start
            self._release_pixels(observation)
            observation.finish(outcome, seconds)
            if call is not None and (model := observation.model) is not None:
                call.note(model.name, model.version, observation.timings)
            self.inflight -= 1
            self.metrics.inflight.set(self.inflight)
            self.metrics.observe_request(
                self.registry.label(observation.model.name if observation.model else name),
                transport,
                outcome,
                seconds,
                request_bytes,
                observation.response_bytes,
            )
