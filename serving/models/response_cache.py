"""Keeps answers: Triton's ``response_cache { enable: true }``, exact and bounded in bytes.

A model that enables it keeps two kinds of results: whole answers, by the bytes and options of a
``segment`` request; and the network's predictions, by the pixels that it sees, so that the same
photo in another output format, or the same tensor, is not inferred again. Both are found by SHA-256
digests: strangers choose the bytes, and must not be able to make two of them look alike.

Each caller's key has results of its own, so that nobody learns from the speed of an answer what
others ask. Results of a version that is replaced or unloaded are never found again.

Source: triton-inference-server/server docs/user_guide/response_cache.md.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from serving.batching.admission import Reservation
from serving.batching.batcher import Batcher
from serving.batching.queue import Inferred
from serving.formats.label_map import Encoded
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.observability.metrics import Metrics
from serving.observability.request_context import current_context
from serving.palette import LabelMap

Kind: TypeAlias = Literal["answer", "prediction"]
ANSWER: Kind = "answer"
PREDICTION: Kind = "prediction"
# Of one entry beside its bytes: keys, objects, places in tables.
OVERHEAD_BYTES = 1024


@dataclass(frozen=True)
class StoredAnswer:
    """A whole answer to a ``segment`` request."""

    parts: Mapping[str, Encoded]
    image_size: Size
    answer_size: Size


class ResponseCache:
    """All models' results, the latest used ones, within ``max_bytes``. On the event loop alone."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._bytes

    def find(self, key: Hashable) -> object | None:
        """Returns what was kept under a key, which becomes the latest used one; None for none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def keep(self, key: Hashable, value: object, size: int) -> None:
        """Keeps a value of ``size`` bytes, and drops those that were not used for longest.

        One that is larger than the whole cache is not kept.
        """
        size += OVERHEAD_BYTES
        if size > self._max_bytes:
            return
        self._drop(key)
        self._entries[key] = value, size
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._metrics.cache_evictions.inc()
        self._metrics.cache_bytes.set(self._bytes)

    def drop_owner(self, owner: object) -> None:
        """Drops everything of one model's version."""
        for key in [key for key in self._entries if isinstance(key, tuple) and key[0] is owner]:
            self._drop(key)
        self._metrics.cache_bytes.set(self._bytes)

    def _drop(self, key: Hashable) -> None:
        _, size = self._entries.pop(key, (None, 0))
        self._bytes -= size


@dataclass
class Lookups:
    """Images and requests that were looked up, and the time that it took."""

    count: int = 0
    ns: int = 0


class ModelCache:
    """The results of one version of a model, as one loading of it gives them.

    Attributes:
        hits, misses: of the statistics extension: an image that had to be inferred is a miss.
    """

    def __init__(self, cache: ResponseCache, model: str, metrics: Metrics) -> None:
        self._cache = cache
        self._model = model
        self._metrics = metrics
        self._owner = object()
        self.hits, self.misses = Lookups(), Lookups()

    def find_answer(self, digest: bytes, options: Hashable) -> StoredAnswer | None:
        """Returns the answer to the same bytes with the same options, to the same caller."""
        start = perf_counter_ns()
        found = self._cache.find(self._key(ANSWER, digest, options))
        self._count(ANSWER, start, is_hit=found is not None)
        return cast("StoredAnswer | None", found)

    def keep_answer(self, digest: bytes, options: Hashable, answer: StoredAnswer) -> None:
        size = sum(len(part.body) for part in answer.parts.values())
        self._cache.keep(self._key(ANSWER, digest, options), answer, size)

    def find_prediction(self, digest: bytes, *, labels_suffice: bool) -> Prediction | None:
        """Returns what the network gave for the same pixels: logits where the caller needs them."""
        kinds = ("logits", "mask") if labels_suffice else ("logits",)
        start, found = perf_counter_ns(), None
        for kind in kinds:
            found = found or self._cache.find(self._key(PREDICTION, digest, kind))
        self._count(PREDICTION, start, is_hit=found is not None)
        return cast("Prediction | None", found)

    def keep_prediction(self, digest: bytes, inferred: Inferred, *, labels_suffice: bool) -> None:
        """Keeps an image's prediction; of a batch only its own part."""
        one = inferred.prediction
        array = one.mask if one.logits is None else one.logits
        if array is None:
            return
        if inferred.batch_size > 1:
            array = array.copy()
        array.flags.writeable = False
        # A graph without logits gives its mask to all.
        kind = "logits" if one.logits is not None or not labels_suffice else "mask"
        kept = (
            Prediction(None, cast(LabelMap, array))
            if one.logits is None
            else Prediction(cast("npt.NDArray[np.float32]", array), None)
        )
        self._cache.keep(self._key(PREDICTION, digest, kind), kept, array.nbytes)

    def clear(self) -> None:
        """Drops all results: the version is not served any more."""
        self._cache.drop_owner(self._owner)

    def _key(self, kind: Kind, digest: bytes, rest: Hashable) -> Hashable:
        context = current_context.get()
        return self._owner, kind, context.key_name if context else "", digest, rest

    def _count(self, kind: Kind, start: int, *, is_hit: bool) -> None:
        metric = self._metrics.cache_hits if is_hit else self._metrics.cache_misses
        metric.labels(self._model, kind).inc()
        if is_hit or kind == PREDICTION:
            lookups = self.hits if is_hit else self.misses
            lookups.count += 1
            lookups.ns += perf_counter_ns() - start
        context = current_context.get()
        if context is None:
            return
        if kind == PREDICTION and not is_hit:
            context.cache = "miss"
        elif is_hit and context.cache != "miss":
            # Nothing had to be inferred, of any image so far.
            context.cache = "hit"


def digest_of(data: bytes | npt.NDArray[np.uint8]) -> bytes:
    """Returns what stands for the bytes of a request, or for pixels of one shape."""
    plain = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
    return hashlib.sha256(plain).digest()


async def submit_cached(
    batcher: Batcher,
    cache: ModelCache | None,
    pool: Executor,
    pixels: npt.NDArray[np.uint8],
    *,
    timeout_s: float | None,
    labels_suffice: bool,
    reservation: Reservation | None = None,
    policy_timeout_s: float | None = None,
    priority: int = 0,
    answer_s: float = 0.0,
) -> Inferred:
    """Infers one image, as ``Batcher.submit``, unless its prediction is known already.

    Raises:
        SegserveError: as ``Batcher.submit``; errors are not kept.
    """
    digest = b""
    if cache is not None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        digest = await loop.run_in_executor(pool, digest_of, pixels)
        if timeout_s is not None:
            timeout_s -= loop.time() - start
        found = None
        if timeout_s is None or timeout_s > 0:
            found = cache.find_prediction(digest, labels_suffice=labels_suffice)
        if found is not None:
            if reservation is not None:
                reservation.release()
            return Inferred(found, 0.0, 0.0, 1)
    inferred = await batcher.submit(
        pixels,
        timeout_s=timeout_s,
        policy_timeout_s=policy_timeout_s,
        priority=priority,
        answer_s=answer_s,
        reservation=reservation,
        labels_suffice=labels_suffice,
    )
    if cache is not None:
        cache.keep_prediction(digest, inferred, labels_suffice=labels_suffice)
    return inferred
