"""Makes a file that shows a fault smaller, as long as it shows the same fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from image_mutants import join, split

Item = TypeVar("Item")


class Budget:
    """How many tries are left: each may start a process anew."""

    def __init__(self, tries: int) -> None:
        self.left = tries

    def take(self) -> bool:
        """Whether there is one more."""
        self.left -= 1
        return self.left >= 0


def reduced_image(
    format: str, data: bytes, fails: Callable[[bytes], bool], tries: int = 150
) -> bytes:
    """The smallest file found: pieces are left out, then bytes of each, with checksums mended."""
    budget = Budget(tries)
    pieces = split(format, data)
    # A file that its pieces do not give back (a wrong length swallows what follows) stays bytes.
    if join(format, pieces) != data and not fails(join(format, pieces)):
        return reduced_bytes(data, fails, budget.left)
    pieces = list(_without(pieces, lambda kept: fails(join(format, list(kept))), budget))
    # The longest hold most of what is not needed.
    for place in sorted(range(len(pieces)), key=lambda k: -len(pieces[k].body)):
        one = pieces[place]

        def still(body: Sequence[int], place: int = place) -> bool:
            changed = [*pieces]
            changed[place] = replace(pieces[place], body=bytes(body))
            return fails(join(format, changed))

        pieces[place] = replace(one, body=bytes(_without(one.body, still, budget)))
    return join(format, pieces)


def reduced_bytes(data: bytes, fails: Callable[[bytes], bool], tries: int = 150) -> bytes:
    """The smallest bytes found."""
    return bytes(_without(data, lambda kept: fails(bytes(kept)), Budget(tries)))


def _without(
    items: Sequence[Item], fails: Callable[[Sequence[Item]], bool], budget: Budget
) -> Sequence[Item]:
    """Leaves out stretches, halves first, that the fault does not need (Zeller's ddmin)."""
    size = len(items) // 2
    while size:
        place = 0
        while place < len(items):
            shorter = [*items[:place], *items[place + size :]]
            if not budget.take():
                return items
            if fails(shorter):
                items = shorter
            else:
                place += size
        size //= 2
    return items
