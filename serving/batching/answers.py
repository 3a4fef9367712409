"""Gives images their answers, with ``preserve_ordering`` in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from serving.batching.batch import Inferred
from serving.batching.request_queue import Item
from serving.errors import SegserveError


class Answers:
    """Sets the futures of items; one whose caller has left is passed over."""

    def __init__(self, *, preserve_ordering: bool) -> None:
        self._ordered = preserve_ordering
        self._expected: deque[Item] = deque()
        self._finished: dict[Item, Inferred | SegserveError] = {}

    def expect(self, item: Item) -> None:
        """Notes an item that entered the queue."""
        if self._ordered:
            self._expected.append(item)

    def give(self, item: Item, result: Inferred | SegserveError) -> None:
        """Answers an item, or holds the answer back until its elders have theirs."""
        # What nobody waits for is not kept: no later release would find it.
        if self._ordered and not item.future.done():
            self._finished[item] = result
            self.release()
        else:
            _set(item, result)

    def fail(self, items: Sequence[Item], error: SegserveError) -> None:
        """Gives all of them the same error."""
        for item in items:
            self.give(item, error)

    def release(self) -> None:
        """Gives what is held back and need not be: elders were answered, or have left."""
        while self._expected:
            item = self._expected[0]
            if not item.future.done():
                if item not in self._finished:
                    return
                _set(item, self._finished[item])
            self._finished.pop(item, None)
            self._expected.popleft()


def _set(item: Item, result: Inferred | SegserveError) -> None:
    if item.future.done():
        return
    if isinstance(result, SegserveError):
        item.future.set_exception(result)
    else:
        item.future.set_result(result)
