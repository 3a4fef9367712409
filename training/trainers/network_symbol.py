"""The symbol that the PyTorch trainer executes, and what of it is trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec

from export.errors import ExportError, IllegalSize, TracingFailed
from export.symbols.find import PUBLISHED, NetworkSpec, trace_symbol
from export.symbols.graph import BATCH_NORMS, Entry, Graph, Node, read_symbol
from export.symbols.networks import MODEL_ALIASES, WITH_AUXILIARY
from export.symbols.shape_rules import LABELLED
from export.symbols.shapes import infer_shapes
from export.symbols.sizes import retarget
from training.options import TrainOptions


def make_symbol(options: TrainOptions, num_classes: int) -> Graph:
    """Returns the symbol of ``--symbol`` at the run's size, else one that MXNet builds in another
    process, or without MXNet a published one.

    Raises:
        IllegalSize, InvalidSymbol: the file's network has no such size, or it is not a symbol.
        ValueError: MXNet cannot build it; its own message.
    """
    if options.symbol is not None:
        return _move(read_symbol(options.symbol), options.height, options.crop_width)
    if find_spec("mxnet") is None:
        return fill_template(options, num_classes)
    network = NetworkSpec(
        options.model, options.backbone, options.width, options.aux, options.output_stride
    )
    try:
        return trace_symbol(network, num_classes, (options.height, options.crop_width)).graph
    except TracingFailed as error:
        raise ValueError(
            f"MXNet could not build the network: {error}; or give --symbol FILE"
        ) from error


def _move(graph: Graph, height: int, width: int) -> Graph:
    try:
        return retarget(graph, height, width)
    except IllegalSize:
        # A symbol without its full-size output does not say its size: it may fit.
        try:
            infer_shapes(graph, height, width)
        except ExportError:
            pass
        else:
            return graph
        raise


def trained_graph(symbol: Graph, options: TrainOptions) -> Graph:
    """Returns the part of the symbol that is trained: its heads are the maps that carry a loss.

    Raises:
        ValueError: there are not as many as ``--loss-weights``.
    """
    graph = symbol.pruned(trained_heads(symbol))
    if len(graph.heads) != len(options.loss_weights):
        raise ValueError(
            f"the network has {len(graph.heads)} maps with losses, --loss-weights gives "
            f"{len(options.loss_weights)} numbers: the prediction's first, then the auxiliary"
        )
    return freeze_batch_norms(graph) if options.freeze_bn else graph


def map_sizes(graph: Graph, size: tuple[int, int], num_classes: int) -> tuple[tuple[int, int], ...]:
    """Returns height and width of each head's map for images of ``size``.

    Raises:
        ValueError: a head has not one channel a class, as where MHP's 19 classes met 18 outputs.
    """
    shapes = infer_shapes(graph, *size)
    found = [shapes.of(head) for head in graph.heads]
    wrong = [shape[1] for shape in found if shape[1] != num_classes]
    if wrong:
        raise ValueError(
            f"the symbol has {wrong[0]} outputs, the dataset {num_classes} classes: build it for "
            "these, or choose the dataset that it was made for"
        )
    return tuple((int(shape[2]), int(shape[3])) for shape in found)


# Between the scores of a position and the map that they are read from.
PASSES_ON = frozenset({"_contrib_BilinearResize2D", "Dropout", "identity", "_copy"})


def fill_template(options: TrainOptions, num_classes: int) -> Graph:
    """Returns the network of ``options`` without MXNet: a published symbol with another size and
    other classes.

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
    """Returns the graph with ``num_classes`` channels in each head.

    Raises:
        ValueError: a head's scores do not come from a convolution.
    """
    changed = list(graph.nodes)
    for head in graph.heads:
        index = head.node
        while graph.nodes[index].op in PASSES_ON:
            index = graph.nodes[index].inputs[0].node
        node = graph.nodes[index]
        if node.op != "Convolution":
            raise ValueError(
                f"the scores of {node.name} ({node.op}) do not come from a convolution: expected "
                "one, whose channels are the classes"
            )
        changed[index] = replace(node, attrs={**node.attrs, "num_filter": str(num_classes)})
    return replace(graph, nodes=tuple(changed))


def trained_heads(graph: Graph) -> tuple[Entry, ...]:
    """Returns the maps of logits behind the symbol's outputs, the prediction's first, each once.

    A resize to the first output's size is left out: the loss is taken at the resolution of what it
    enlarges, which may be another output (ICNet's full-size map enlarges the next one). So is an
    output layer (``SoftmaxOutput``): its gradient knows no class weights.
    """
    full = _resized(graph, graph.heads[0])
    heads: list[Entry] = []
    for head in graph.heads:
        while graph.nodes[head.node].op in LABELLED or (full and _resized(graph, head) == full):
            head = graph.nodes[head.node].inputs[0]
        if head not in heads:
            heads.append(head)
    return tuple(heads)


def _resized(graph: Graph, head: Entry) -> tuple[int, int] | None:
    """Returns height and width of the entry if it is a resize."""
    node = graph.nodes[head.node]
    if node.op != "_contrib_BilinearResize2D":
        return None
    return node.integer("height", 1), node.integer("width", 1)


def frozen_parameters(graph: Graph) -> frozenset[str]:
    """Returns the parameters that never learn: scale and shift of a batch norm that keeps its
    statistics, a fixed scale, and a deconvolution that enlarges each channel by itself (bilinear).
    """
    frozen: set[str] = set()
    for _, node in graph.operators():
        names = [graph.nodes[entry.node].name for entry in node.inputs]
        if node.op in BATCH_NORMS:
            frozen.update(names[1:2] if node.flag("fix_gamma", True) else ())
            frozen.update(names[1:3] if node.flag("use_global_stats", False) else ())
        elif node.op == "Deconvolution" and _is_by_channel(node):
            frozen.add(names[1])
    return frozenset(frozen)


def freeze_batch_norms(graph: Graph, of: Collection[str] | None = None) -> Graph:
    """Returns the graph with batch norms that keep their statistics: all (``--freeze-bn``), or
    those whose scale is one ``of`` these parameters.
    """

    def freeze(node: Node) -> Node:
        if node.op not in BATCH_NORMS:
            return node
        if of is not None and graph.nodes[node.inputs[1].node].name not in of:
            return node
        return replace(node, attrs={**node.attrs, "use_global_stats": "True"})

    return replace(graph, nodes=tuple(freeze(node) for node in graph.nodes))


def _is_by_channel(deconvolution: Node) -> bool:
    return deconvolution.integer("num_group", 1) == deconvolution.integer("num_filter", 0)
