"""Which network the options of ``segserve export`` name, and at which size it was built."""

from __future__ import annotations

from export.errors import ExportError, IllegalSize
from export.retarget import size_rule
from export.symbol_lookup import FoundSymbol, NetworkName
from training.backbones import default_backbone


def named_network(
    model: str | None,
    backbone: str | None,
    width: float,
    dataset: str | None,
    aux: bool,
    output_stride: int | None,
) -> NetworkName:
    """The network of ``--model`` and its forms. Raises ExportError where it is not named."""
    if model is None:
        raise ExportError("name the network with --model, or give its --symbol")
    chosen = backbone or default_backbone(model)
    return NetworkName(model, chosen, width, dataset, aux, output_stride)


def own_size(found: FoundSymbol) -> tuple[int, int]:
    """Height and width that the symbol was built for. Raises IllegalSize where it fits many."""
    rule = size_rule(found.graph)
    if rule is None:
        raise IllegalSize(f"{found.source} fits many sizes; choose one with --size HEIGHTxWIDTH")
    return rule.height, rule.width
