"""Symbols of many networks, traced by MXNet in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from export.symbols.find import NetworkSpec
from export.symbols.graph import Graph, read_symbol

Wanted = tuple[NetworkSpec, tuple[int, int]]
TRACE = """
import json, sys
from pathlib import Path
from training.networks import build
from training.networks.tracing import write_symbol
for index, n in enumerate(json.loads(sys.argv[2])):
    network = build(n["model"], n["backbone"], n["classes"], n["rows"], n["columns"],
                    channel_multiplier=n["width"], aux=n["aux"],
                    output_stride=n["output_stride"] or 16)
    write_symbol(network, Path(sys.argv[1]) / f"{index}.json", n["rows"], n["columns"])
"""


def trace_networks(
    run_mxnet: Callable[..., str], folder: Path, wanted: Sequence[Wanted], classes: int
) -> dict[Wanted, Graph]:
    """The symbol of each network at its size (height, width); ``folder`` is empty."""
    described = [
        {**asdict(network), "classes": classes, "rows": size[0], "columns": size[1]}
        for network, size in wanted
    ]
    run_mxnet("-c", TRACE, folder, json.dumps(described))
    return {key: read_symbol(folder / f"{index}.json") for index, key in enumerate(wanted)}
