"""What takes batches from a queue: one worker an instance of the engine, on one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.admission.admission import Admission, EngineLoad
from serving.batching.batch import BatchLimits, BatchObserver, Execution, Inferred
from serving.batching.cost_model import CostModel
from serving.batching.engine_runner import EngineSlot, EngineThread, EngineThreadDied
from serving.batching.queue import Answers, Item, RequestQueue
from serving.engine import Engine, EngineSpec, LabelEngine, Prediction
from serving.errors import EngineFailed, SegserveError
from serving.imaging.jit import compiled, read_only

log = logging.getLogger("segserve")

_THREAD_RETRY_S = 1.0
_NOT_FINITE = (
    "the network's logits are not finite (NaN or infinity); its weights or its precision are at "
    "fault"
)


@dataclass(eq=False)
class _Batch:
    items: list[Item]
    start: float


class Workers:
    """Run what waits in ``queue`` on the engine of ``slot``, and answer it.

    Attributes:
        idle: set while nothing waits and nothing is at work.
    """

    def __init__(
        self,
        slot: EngineSlot,
        queue: RequestQueue,
        answers: Answers,
        costs: CostModel,
        limits: BatchLimits,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self._slot = slot
        self._queue = queue
        self._answers = answers
        self._costs = costs
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._arrival = asyncio.Event()
        self._at_work: list[_Batch] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def items(self) -> list[Item]:
        """All images at work."""
        return [item for batch in self._at_work for item in batch.items]

    def read_load(self) -> EngineLoad:
        """What the engine does now."""
        now, spec = self._clock(), self._slot.engine.spec
        running = tuple((len(batch.items), now - batch.start) for batch in self._at_work)
        return EngineLoad(running, spec.instances, spec.max_batch_size)

    def start(self, admission: Admission) -> None:
        """Starts them, on the running event loop; ``admission`` says what a batch is made of."""
        self._tasks = [
            asyncio.create_task(self._work(admission))
            for _ in range(self._slot.engine.spec.instances)
        ]

    async def stop(self) -> None:
        """Ends them; runs under way are left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tell_arrival(self) -> None:
        """An image entered the queue."""
        self.idle.clear()
        self._observer.queue_changed(len(self._queue))
        self._arrival.set()

    def note_queue(self) -> None:
        """The queue has become shorter, or a batch has ended."""
        self._observer.queue_changed(len(self._queue))
        if not self._queue and not self._at_work:
            self.idle.set()

    async def _work(self, admission: Admission) -> None:
        thread = await _start_thread()
        try:
            while True:
                await self._slot.usable.wait()
                size = await self._wait_for_batch()
                if self._slot.broken is not None:
                    continue
                batch = _Batch(admission.take(size), self._clock())
                # At work before the queue is noted: a drain must not see neither.
                self._at_work.append(batch)
                self._slot.calm.clear()
                lives = True
                try:
                    lives = not batch.items or await self._run(batch, thread)
                finally:
                    self._at_work.remove(batch)
                    if not self._at_work:
                        self._slot.calm.set()
                    self.note_queue()
                if not lives:
                    thread.stop()
                    thread = await _start_thread()
        finally:
            thread.stop()

    async def _wait_for_batch(self) -> int:
        """Until a preferred size is there, or the oldest image has waited ``delay_s``."""
        scheduling = self._limits.scheduling
        while True:
            self._arrival.clear()
            left: float | None = None
            if self._queue:
                left = self._queue.oldest + scheduling.delay_s - self._clock()
                largest = self._slot.engine.spec.max_batch_size
                size = scheduling.choose_size(len(self._queue), largest, has_waited=left <= 0.0)
                if size:
                    return size
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except asyncio.TimeoutError:
                continue

    async def _run(self, batch: _Batch, thread: EngineThread[Run]) -> bool:
        """Runs a batch and answers it; False where ``thread`` is of no more use."""
        engine, items = self._slot.engine, batch.items
        self._observer.queue_changed(len(self._queue))
        call = thread.call(lambda: infer(engine, items, self._clock))
        try:
            run = await asyncio.wait_for(asyncio.shield(call), self._limits.run_timeout_s)
        except asyncio.TimeoutError:
            self._slot.leave_behind(call, engine)
            self._slot.report_failure("timeout")
            why = f"a run did not end within {self._limits.run_timeout_s:g} s"
            self._answers.fail(items, EngineFailed(f"{why} (setting engine_timeout_s)"))
            self._slot.give_up(engine, why)
            return False
        except EngineThreadDied as error:
            self._slot.report_failure("died")
            self._answers.fail(items, EngineFailed(f"the engine's thread ended: {error}"))
            self._slot.give_up(engine, f"its thread ended: {error}")
            return False
        except Exception as error:
            if not isinstance(error, SegserveError):
                error = EngineFailed(f"inference failed: {type(error).__name__}: {error}")
            self._answers.fail(items, error)
            if isinstance(error, EngineFailed):
                self._slot.report_failure(error.kind)
                self._slot.count_failure(engine, str(error))
            return True
        if run.not_finite:
            self._slot.report_failure("not_finite")
        if len(run.not_finite) == len(items):
            self._slot.count_failure(engine, _NOT_FINITE)
        else:
            self._slot.count_success(engine)
        spent = self._clock() - batch.start
        self._costs.learn(len(items), spent)
        for index, item in enumerate(items):
            queued = batch.start - item.arrived
            if index in run.not_finite:
                # Its batch mates have their answers: one picture can overflow fp16 alone.
                self._answers.give(item, EngineFailed(_NOT_FINITE, kind="not_finite"))
                continue
            answer = Inferred(run.prediction[index], queued, spent, len(items))
            self._answers.give(item, answer)
        handed_out = self._clock() - batch.start - spent
        assembled = run.assembled_s
        self._observer.batch_done(Execution(len(items), assembled, spent - assembled, handed_out))
        return True


async def _start_thread() -> EngineThread[Run]:
    """Returns a thread for the engine; tries again for as long as the system refuses one."""
    while True:
        try:
            return EngineThread("engine")
        except RuntimeError as error:
            log.error("no thread for the engine: %s; trying again", error)
            await asyncio.sleep(_THREAD_RETRY_S)


# One run of an engine: images of several requests put together, and what comes back checked.
#
# An engine that answers something else than its ``spec`` says, or numbers that are not finite, has
# failed: interpolation and argmax would make a label map of it all the same, mostly of class 0.

# All ones in a float32's exponent: infinite, or not a number.
_EXPONENT = np.uint32(0x7F800000)


@dataclass(frozen=True)
class Run:
    """A batch's prediction.

    Attributes:
        assembled_s: what putting the images together took.
        not_finite: the images whose logits are not finite, by their place in the batch.
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
    """Returns the images of a batch whose logits hold an infinity or a NaN, by their places.

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
    """Compiles the loop of this module, so that no request waits for it."""
    find_not_finite(Prediction(np.zeros((1, 1, 1, 1), np.float32), None))


@compiled
def _largest_exponent(bits: npt.NDArray[np.uint32]) -> np.uint32:
    # Without a branch it is vectorised; one that stopped at the first would not be.
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & _EXPONENT)
    return largest
