"""What answering takes once an image has been inferred, learnt from the last answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from serving.batching.cost_model import Average


class AnswerCosts:
    """Seconds to restore and encode, by model and forms: of an answer, and of a megapixel."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], Average] = {}
        self._megapixels: dict[tuple[str, ...], Average] = {}

    @contextmanager
    def measure(self, model: str, forms: Sequence[str], pixels: int) -> Iterator[None]:
        """Notes how long the block takes to make an answer of ``pixels``, unless it raises."""
        start = perf_counter()
        yield
        seconds, key = perf_counter() - start, _key(model, forms)
        self._answers.setdefault(key, Average()).learn(seconds)
        self._megapixels.setdefault(key, Average()).learn(seconds / pixels * 1e6)

    def predict_least(self, model: str, forms: Sequence[str]) -> float:
        """Of an image whose size is not known yet: rather too little, as sizes differ."""
        known = self._answers.get(_key(model, forms))
        return known.predict(-1.0) or 0.0 if known else 0.0

    def predict(self, model: str, forms: Sequence[str], pixels: int) -> float:
        """Of an answer of ``pixels``; 0 where nothing is known."""
        known = self._megapixels.get(_key(model, forms))
        return (known.predict() or 0.0) * pixels / 1e6 if known else 0.0


def _key(model: str, forms: Sequence[str]) -> tuple[str, ...]:
    # Both are known to the server, so there are not many.
    return model, *sorted(set(forms))
