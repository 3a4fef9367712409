"""Which sizes a network can be built for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SizeRule:
    """Heights and widths that are a multiple of ``multiple`` plus one of ``offsets``, and at least
    ``smallest``."""

    multiple: int
    offsets: tuple[int, ...] = (0,)
    smallest: int = 0

    def allows(self, length: int) -> bool:
        """True for a legal height or width in pixels."""
        return length >= max(self.smallest, 1) and length % self.multiple in self.offsets

    def nearest(self, length: int) -> int:
        """The legal length next to ``length``."""
        smallest = max(self.smallest, self.multiple)
        candidates = [
            max(round((length - offset) / self.multiple), -(-(smallest - offset) // self.multiple))
            * self.multiple
            + offset
            for offset in self.offsets
        ]
        return min(candidates, key=lambda candidate: abs(candidate - length))

    def check(self, name: str, height: int, width: int) -> None:
        """Raises ValueError for an illegal size; the message names the nearest legal one."""
        if self.allows(height) and self.allows(width):
            return
        kinds = [f"multiples of {self.multiple}" + (f" plus {o}" if o else "")
                 for o in self.offsets]  # fmt: skip
        if self.multiple == 1:
            kinds = [f"of at least {self.smallest} pixels"]
        raise ValueError(
            f"{name} takes sizes that are {' or '.join(kinds)}, not {height}x{width}; "
            f"the nearest is {self.nearest(height)}x{self.nearest(width)}"
        )
