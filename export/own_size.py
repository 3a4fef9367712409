"""At which size a symbol was built."""

from __future__ import annotations

from export.errors import IllegalSize
from export.retarget import built_size
from export.symbol_lookup import FoundSymbol


def own_size(found: FoundSymbol) -> tuple[int, int]:
    """Height and width that the symbol was built for. Raises IllegalSize where it fits many."""
    size = built_size(found.graph)
    if size is None:
        raise IllegalSize(f"{found.source} fits many sizes; choose one with --size HEIGHTxWIDTH")
    return size
