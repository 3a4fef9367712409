"""The symbol of the network that a run trains: a file's, MXNet's from another process, or a
published one."""

from __future__ import annotations

from importlib.util import find_spec

from export.errors import ExportError, IllegalSize, TracingFailed
from export.symbols.find import NetworkSpec, trace_symbol
from export.symbols.graph import Graph, read_symbol
from export.symbols.shapes import infer_shapes, retarget
from training.options import TrainOptions
from training.trained_heads import freeze_batch_norms, trained_heads
from training.trainers.template_symbol import fill_template


def make_symbol(options: TrainOptions, num_classes: int) -> Graph:
    """The file named by ``--symbol``, moved to the run's size; else built by MXNet elsewhere, or
    without MXNet a published one.

    Raises:
        IllegalSize, InvalidSymbol: the file's network has no such size, or it is no symbol.
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
        # Of a symbol without its full-size output nobody knows what it was made for: it may fit.
        try:
            infer_shapes(graph, height, width)
        except ExportError:
            pass
        else:
            return graph
        raise


def trained_graph(symbol: Graph, options: TrainOptions) -> Graph:
    """What of it is trained: its heads are the maps that carry a loss.

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
    """Height and width of each head's map for images of ``size``.

    Raises:
        ValueError: a head has not one channel a class, as where MHP's 19 classes met 18 outputs.
    """
    shapes = infer_shapes(graph, *size)
    found = [shapes.of(head) for head in graph.heads]
    wrong = [shape[1] for shape in found if shape[1] != num_classes]
    if wrong:
        raise ValueError(
            f"the symbol has {wrong[0]} outputs, the dataset {num_classes} classes: build it for "
            "these, or name the dataset that it was made for"
        )
    return tuple((int(shape[2]), int(shape[3])) for shape in found)
