"""A network's symbol without MXNet: a published one, with another size and other classes."""

from __future__ import annotations

from dataclasses import replace

from export.symbols.find import PUBLISHED
from export.symbols.graph import Graph, read_symbol
from export.symbols.networks import MODEL_ALIASES, WITH_AUXILIARY
from export.symbols.shapes import retarget
from training.options import TrainOptions

# Between the scores of a position and the map that they are read from.
PASSES_ON = frozenset({"_contrib_BilinearResize2D", "Dropout", "identity", "_copy"})


def fill_template(options: TrainOptions, num_classes: int) -> Graph:
    """The network of ``options``.

    Raises:
        IllegalSize: it has no such size; the nearest is named.
        ValueError: it is none of the published ones, which are named.
    """
    names = {tuple(path.name.split("_")[:2]): path for path in sorted(PUBLISHED.glob("*.json.gz"))}
    networks = {
        (MODEL_ALIASES.get(model, model), backbone): path
        for (model, backbone), path in names.items()
    }
    path = networks.get((options.model, options.backbone))
    if path is None or options.width != 1:
        known = ", ".join(f"{model} {backbone}" for model, backbone in networks)
        raise ValueError(
            f"MXNet, which builds networks, is not installed. Published symbols of full width: "
            f"{known}; or give --symbol FILE"
        )
    graph = retarget(read_symbol(path), options.height, options.crop_width)
    if options.model in WITH_AUXILIARY and not options.aux:
        graph = graph.pruned(graph.heads[:1])
    return with_outputs(graph, num_classes)


def with_outputs(graph: Graph, num_classes: int) -> Graph:
    """The graph whose heads tell ``num_classes`` classes apart.

    Raises:
        ValueError: a head's scores are no convolution's.
    """
    changed = list(graph.nodes)
    for head in graph.heads:
        index = head.node
        while graph.nodes[index].op in PASSES_ON:
            index = graph.nodes[index].inputs[0].node
        node = graph.nodes[index]
        if node.op != "Convolution":
            raise ValueError(f"the scores of {node.name} ({node.op}) have no number of outputs")
        changed[index] = replace(node, attrs={**node.attrs, "num_filter": str(num_classes)})
    return replace(graph, nodes=tuple(changed))
