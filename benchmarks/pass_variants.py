"""One network with and without a rewrite of ``export/passes``: two runs that give the same.

``benchmarks.passes`` measures them. One thread each; graphs are cut to what is read of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from benchmarks.undone_passes import average_by_bins, normalise_apart
from export.lowering.convert import OPSET, convert
from export.passes.build import REWRITES, build_model, cut_at_logits, prune_heads
from export.passes.contract import IMAGE, LOGITS, MASK, fold_normalisation
from export.symbols.graph import Entry, Graph
from export.symbols.params import Parameters
from serving.engines.graph import cut_graph
from serving.imaging.geometry import Size
from serving.imaging.restore import model_labels

Values: TypeAlias = npt.NDArray[np.generic]
Run: TypeAlias = Callable[[], Values]
FULL = "logits_full_size"


@dataclass(frozen=True)
class Subject:
    """A network of one size (height, width), its parameters, and what it is shown.

    Attributes:
        graph: built for that size, with all its heads.
        image: uint8 [height, width, 3].
        off: rewrites to leave out on both sides, which would do part of the measured one's work.
    """

    graph: Graph
    parameters: Parameters
    size: tuple[int, int]
    image: npt.NDArray[np.uint8]
    off: tuple[str, ...] = ()

    def build(
        self,
        heads: Sequence[str] = (LOGITS,),
        without: Collection[str] = (),
        opset: int | None = None,
    ) -> ModelProto:
        """The serving graph, without ``off`` and ``without``."""
        left_out = (*self.off, *without)
        return build_model(
            self.graph, self.parameters, *self.size, heads=heads, without=left_out, opset=opset
        )

    def run(self, model: ModelProto) -> Run:
        """What calculates the model's first output, [1, ...], for the image."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feed = {IMAGE: self.image[None]}

        def first() -> Values:
            values: Values = session.run(None, feed)[0]
            return values

        return first


@dataclass(frozen=True)
class Pair:
    """Two ways to the same values."""

    without: Run
    with_it: Run


def make_pair(rewrite: str, subject: Subject) -> Pair:
    """``rewrite``: a pass of ``export.passes.build``, or one of ``OTHERS``."""
    if rewrite in OTHERS:
        return OTHERS[rewrite](subject)
    return Pair(subject.run(subject.build(without=(rewrite,))), subject.run(subject.build()))


def _prune_heads(subject: Subject) -> Pair:
    """All heads computed, or the prediction's logits alone."""
    main = cut_at_logits(prune_heads(subject.graph), *subject.size)
    with_it = _rewritten(subject, main.graph)
    logits = _entry_named(subject.graph, main.graph.nodes[main.graph.heads[0].node].name)
    every = subject.graph.pruned([logits, *subject.graph.heads[1:]])
    return Pair(subject.run(_rewritten(subject, every)), subject.run(with_it))


def _rewritten(subject: Subject, graph: Graph) -> ModelProto:
    """What ``build_model`` makes of a graph before it adds outputs."""
    model = convert(graph, subject.parameters, *subject.size)
    for rewrite in REWRITES.values():
        rewrite(model)
    fold_normalisation(model)
    return model


def _entry_named(graph: Graph, name: str) -> Entry:
    return Entry(next(index for index, node in graph.operators() if node.name == name))


def _cut_at_logits(subject: Subject) -> Pair:
    """Labels from logits at the image's size, or from those of the head, restored as served."""
    small = subject.run(subject.build())
    return Pair(
        _labels_outside(subject),
        lambda: model_labels(small()[0].astype(np.float32, copy=False), Size(*subject.size)),
    )


def _mask_head(subject: Subject) -> Pair:
    """Labels from logits at the image's size, or from the graph itself."""
    inside = subject.run(subject.build((MASK,)))
    return Pair(_labels_outside(subject), lambda: inside()[0])


def _labels_outside(subject: Subject) -> Run:
    """NumPy's argmax over the logits that the graph resized to the image."""
    model = subject.build((MASK,))
    model.graph.output.append(helper.make_tensor_value_info(FULL, TensorProto.FLOAT, None))
    full = subject.run(cut_graph(model, FULL))
    return lambda: full()[0].argmax(axis=0).astype(np.uint8)


def _sample_deformable(subject: Subject) -> Pair:
    return Pair(subject.run(subject.build()), subject.run(subject.build(opset=OPSET)))


def _normalisation(subject: Subject) -> Pair:
    apart = subject.build()
    normalise_apart(apart)
    return Pair(subject.run(apart), subject.run(subject.build()))


def _adaptive_pooling(subject: Subject) -> Pair:
    binned = subject.build()
    average_by_bins(binned)
    return Pair(subject.run(binned), subject.run(subject.build()))


ADAPTIVE = "adaptive pooling as matrix products"
OTHERS: dict[str, Callable[[Subject], Pair]] = {
    "prune_heads": _prune_heads,
    "cut_at_logits": _cut_at_logits,
    "mask_head": _mask_head,
    "sample_deformable": _sample_deformable,
    "fold_normalisation": _normalisation,
    ADAPTIVE: _adaptive_pooling,
}
