"""Refuses requests by their head, before their body is read: what overload costs is then little.

Who enters is decided by ``batching/admission.py``, here as after the body; this asks it earlier.
Only what is certain is refused: a model that is named, and would take the request whatever its body
holds. All else, other errors too, is left to the way that every request goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.admission.admission import AnswerCosts
from serving.admission.observation import Observer
from serving.errors import SegserveError, TooManyRequests
from serving.models.model import Model
from serving.models.registry import Registry


@dataclass(frozen=True)
class Announced:
    """An inference of which the head is known.

    Attributes:
        timeout_s: the transport's deadline, from now; None where there is none.
        priority: None where the body holds it.
        formats: of the answer; empty where the body says, or none is made.
        request_bytes: of the body, as announced; 0 where it is not.
        is_certain: the model's name is not to be changed by what follows; a request for a model
            that is not there ends then, too.
    """

    model: str
    version: int | None
    timeout_s: float | None
    priority: int | None = None
    formats: Sequence[str] = ()
    request_bytes: int = 0
    is_certain: bool = False


class Door:
    """Stands before the bodies of one server's requests."""

    def __init__(self, registry: Registry, observer: Observer, costs: AnswerCosts) -> None:
        self._registry = registry
        self._observer = observer
        self._costs = costs

    def check(self, announced: Announced, transport: str) -> None:
        """Returns where the request may go on, which promises nothing.

        A refusal is counted and timed as one that comes later would be.

        Raises:
            QueueFull, PredictedLate, ModelNotFound, NotReady: as ``Segmenter.segment``.
        """
        if announced.timeout_s is not None and announced.timeout_s <= 0.0:
            return
        try:
            model = self._registry.get(announced.model, announced.version)
        except SegserveError as error:
            # Of a family the image's size chooses the model.
            if not announced.is_certain or self._registry.is_family(announced.model):
                return
            with self._observer.observe(announced.model, transport, announced.request_bytes):
                raise error
        refusal: TooManyRequests | None = None
        if not self._observer.is_full:
            refusal = self._find_refusal(model, announced)
            if refusal is None:
                return
        name, size = announced.model, announced.request_bytes
        # Refuses by itself where too many requests are under way.
        with self._observer.observe(name, transport, size) as observed:
            observed.hold(model)
            if refusal is not None:
                raise refusal

    def _find_refusal(self, model: Model, announced: Announced) -> TooManyRequests | None:
        try:
            model.batcher.check(
                model.input_bytes,
                timeout_s=announced.timeout_s,
                priority=announced.priority,
                answer_s=self._costs.predict_least(model.name, announced.formats),
            )
        except TooManyRequests as error:
            return error
        except SegserveError:
            return None
        return None
