"""Runs an engine: the state that it is in, the thread that calls it, and the check of its answer.

An engine that fails ``max_failures`` times in a row, is stuck, or ends its thread is broken:
nothing more is given to it until another engine replaces it.

An engine whose answer differs from its ``spec``, or is not finite, has failed: interpolation and
argmax would make a label map of it all the same, mostly of class 0.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from serving.batching.queue import Item
from serving.engine import Engine, EngineSpec, LabelEngine
from serving.errors import EngineFailed
from serving.imaging.jit import compiled, read_only
from serving.imaging.restore import Prediction

Result = TypeVar("Result")

# All ones in a float32's exponent: infinite, or not a number.
_EXPONENT = np.uint32(0x7F800000)


@dataclass(eq=False)
class Batch:
    """The images of one run, and when it began, on the batcher's clock."""

    items: list[Item]
    start: float


@dataclass(frozen=True)
class EngineLoad:
    """The batches that run now: their sizes, and the seconds since their starts."""

    running: Sequence[tuple[int, float]]
    instances: int
    max_batch_size: int

    @property
    def is_idle(self) -> bool:
        """Returns whether an instance is free."""
        return len(self.running) < self.instances

    @property
    def free(self) -> int:
        """Returns how many images would run at once."""
        return max(0, self.instances - len(self.running)) * self.max_batch_size


class EngineSlot:
    """The engine behind a batcher, one at a time, on one event loop.

    Attributes:
        batches: those that are running.
        broken: why nothing is given to the engine; None while it works.
        healthy: set while ``broken`` is None.
        idle: set while no batch is running.
    """

    def __init__(self, engine: Engine, max_failures: int, on_broken: Callable[[str], None]) -> None:
        self.engine = engine
        self.batches: list[Batch] = []
        self.broken: str | None = None
        self.healthy = asyncio.Event()
        self.healthy.set()
        self.idle = asyncio.Event()
        self.idle.set()
        self._max_failures = max_failures
        self._on_broken = on_broken
        self._failures = 0
        self._stuck: set[object] = set()

    @property
    def has_stuck_run(self) -> bool:
        """Returns whether a run that was left behind has not ended."""
        return bool(self._stuck)

    def begin(self, batch: Batch) -> None:
        """Adds a batch that runs from now on."""
        self.batches.append(batch)
        self.idle.clear()

    def end(self, batch: Batch) -> None:
        """Removes a batch that runs no more."""
        self.batches.remove(batch)
        if not self.batches:
            self.idle.set()

    def read_load(self, now: float) -> EngineLoad:
        """Returns what the engine does at ``now``, on the batcher's clock."""
        running = tuple((len(batch.items), now - batch.start) for batch in self.batches)
        spec = self.engine.spec
        return EngineLoad(running, spec.instances, spec.max_batch_size)

    def count_success(self, engine: Engine) -> None:
        """Counts a run that ended well; ``engine`` may have been replaced since, here and below."""
        if engine is self.engine:
            self._failures = 0

    def count_failure(self, engine: Engine, reason: str) -> None:
        """Counts a run that failed in an engine that still answers."""
        if engine is not self.engine:
            return
        self._failures += 1
        if self._failures >= self._max_failures:
            self.give_up(engine, f"{self._failures} runs in a row failed, the last with: {reason}")

    def give_up(self, engine: Engine, reason: str) -> None:
        """Marks the engine as broken."""
        if engine is self.engine and self.broken is None:
            self.broken = reason
            self.healthy.clear()
            self._on_broken(reason)

    def leave_behind(self, run: asyncio.Future[Result], engine: Engine) -> None:
        """Abandons a run that is stuck; should it ever end, its engine is closed then."""
        self._stuck.add(run)

        def finish(ended: asyncio.Future[Result]) -> None:
            self._stuck.discard(ended)
            # Retrieved, or asyncio logs an exception that nobody saw.
            if not ended.cancelled():
                ended.exception()
            if engine is not self.engine and not self._stuck:
                engine.close()

        run.add_done_callback(finish)

    async def replace(self, engine: Engine) -> None:
        """Replaces the broken engine by one of the same ``spec``."""
        broken, self.engine = self.engine, engine
        # Instances that still work finish before their engine is closed.
        await self.idle.wait()
        if not self._stuck:
            broken.close()
        self._failures = 0
        self.broken = None
        self.healthy.set()


class EngineThread(Generic[Result]):
    """A thread that runs one call at a time for the event loop, in the order in which they come.

    It may be left behind: a thread of an executor that is stuck in an engine would keep the process
    from ending. It ends after a call that raises something else than an Exception.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Result], asyncio.Future[Result]] | None]
        self._calls = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], Result]) -> asyncio.Future[Result]:
        """Runs ``function`` on the thread; returns its future, on the event loop."""
        future: asyncio.Future[Result] = self._loop.create_future()
        self._calls.put((function, future))
        return future

    def stop(self) -> None:
        """Ends the thread after the call at work, without waiting for it."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            function, future = item
            try:
                result = function()
            except BaseException as error:
                dead = not isinstance(error, Exception)
                self._report(_set_error, future, error)
                if dead:
                    return
            else:
                self._report(_set_result, future, result)
            del item, function, future

    def _report(self, report: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(report, *arguments)
        except RuntimeError:
            return  # The loop has ended: nobody waits.


class EngineThreadDied(Exception):
    """The call raised something else than an Exception (``SystemExit``): its thread has ended."""


def _set_result(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _set_error(future: asyncio.Future[Result], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.set_exception(EngineThreadDied(f"{type(error).__name__}: {error}"))


@dataclass(frozen=True)
class Run:
    """The outcome of one run: a batch's prediction, and what was found out about it.

    Attributes:
        assembled_s: what putting the images together took.
        not_finite: the images whose logits are not finite, by their index in the batch.
    """

    prediction: Prediction
    assembled_s: float
    not_finite: frozenset[int]


def infer(engine: Engine, items: Sequence[Item], clock: Callable[[], float]) -> Run:
    """Runs ``engine`` on the images of ``items``; on the engine's thread.

    Raises:
        EngineFailed: the run failed, or its answer is not of the engine's ``spec``.
    """
    start = clock()
    batch = items[0].image[None]
    if len(items) > 1:
        batch = np.stack([item.image for item in items])
    assembled = clock() - start
    # One image that needs logits brings them for its batch mates too.
    suffice = all(item.labels_suffice for item in items)
    if suffice and isinstance(engine, LabelEngine) and engine.gives_labels:
        prediction = engine.run_labels(batch)
    else:
        prediction = engine.run(batch)
    check_prediction(prediction, engine.spec, len(items))
    return Run(prediction, assembled, find_not_finite(prediction))


def check_prediction(prediction: Prediction, spec: EngineSpec, n: int) -> None:
    """Compares datatype and shape with what the engine's ``spec`` promises.

    Raises:
        EngineFailed: they differ; the message names the tensor.
    """
    found: npt.NDArray[np.generic]
    datatype: np.dtype[np.generic]
    expected: tuple[int, ...]
    if prediction.logits is not None and spec.logits_size is not None:
        name, found, datatype = "logits", prediction.logits, np.dtype(np.float32)
        size = spec.logits_size
        expected = (n, spec.num_classes, size.height, size.width)
    elif prediction.mask is not None:
        name, found, datatype = "mask", prediction.mask, spec.label_type
        expected = (n, spec.size.height, spec.size.width)
    else:
        raise EngineFailed("the engine gave neither logits nor a mask", kind="wrong_answer")
    if found.dtype != datatype or found.shape != expected:
        raise EngineFailed(
            f"the engine gave {name} as {found.dtype} {list(found.shape)}; expected {datatype} "
            f"{list(expected)}",
            kind="wrong_answer",
        )


def find_not_finite(prediction: Prediction) -> frozenset[int]:
    """Returns the images of a batch whose logits hold an infinity or a NaN, by index.

    One pass over the bits: 0.14 ms for 19 classes at 256x512, where the network takes over 100.
    """
    if prediction.logits is None:
        return frozenset()
    return frozenset(
        index
        for index, logits in enumerate(prediction.logits)
        if _largest_exponent(read_only(logits).reshape(-1).view(np.uint32)) == _EXPONENT
    )


def warm() -> None:
    """Compiles the loop of this module (once), so that no request waits for it."""
    find_not_finite(Prediction(np.zeros((1, 1, 1, 1), np.float32), None))


@compiled
def _largest_exponent(bits: npt.NDArray[np.uint32]) -> np.uint32:
    # Without a branch it is vectorised; one that stopped at the first would not be.
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & _EXPONENT)
    return largest
