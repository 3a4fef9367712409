"""Fixes a network to one image size: what it computes of shapes becomes constants.

Exporters write sizes as arithmetic on ``Shape``. The network is run once on one image and once on
two, and every shape that came out the same is stored. A resize then states its scales, which do not
fix the batch as sizes do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from export.errors import InvalidNetwork
from export.lowering.context import resize_scale
from export.lowering.convert import BATCH
from export.passes.onnx_graph import OnnxGraph, copy_model, integers, texts

Array = NDArray[np.generic]
_SHAPE_OPS = {"Shape", "Size"}


@dataclass(frozen=True)
class FrozenNetwork:
    """A network of one size with a symbolic batch.

    ``shape`` and ``sample`` are its output's for one image of noise, the batch's 1 in front.
    """

    model: ModelProto
    sample: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sample.shape)


def freeze_shapes(model: ModelProto, shape: tuple[int, int, int]) -> FrozenNetwork:
    """Edits in place a prepared network for inputs [N, *shape].

    Raises InvalidNetwork where ONNX Runtime cannot run it at that size.
    """
    _set_batch(model, BATCH, shape)
    graph = OnnxGraph(model)
    output = model.graph.output[0].name
    computed = _computed_shapes(model)
    resized = [node for node in graph.nodes("Resize") if len(node.input) == 4]
    reshaped = graph.nodes("Reshape")
    sources = [n.input[0] for n in resized + reshaped if graph.constant(n.input[0]) is None]
    one = run_once(model, shape, 1, [output, *computed, *sources])
    if isinstance(one, str):
        raise InvalidNetwork(
            f"ONNX Runtime cannot run the network at {'x'.join(map(str, shape))}: {one}"
        )
    two = run_once(model, shape, 2, [output, *computed]) if computed else one
    for name in computed:
        # Where two images do not run, the batch is written into the network: one it is.
        same = isinstance(two, str) or np.array_equal(one[name], two[name])
        if same:
            producer = graph.producer(name)
            assert producer is not None, "_computed_shapes returns outputs of nodes"
            place = list(producer.output).index(name)
            graph.set_output(producer, place, f"{name}_computed")
            graph.set_constant(name, one[name])
    for node in resized:
        sizes = one[node.input[3]] if node.input[3] in one else graph.constant(node.input[3])
        if sizes is not None and node.input[0] in one:
            _state_scales(graph, node, one[node.input[0]].shape, sizes)
    for node in reshaped:
        target = node.input[1]
        if target in one and not isinstance(two, str) and graph.constant(target) is None:
            _follow_batch(graph, node, one[node.input[0]].shape, one[target], two[target])
        elif node.input[0] in one:
            _free_batch(graph, node, one[node.input[0]].shape)
    graph.drop_dead()
    return FrozenNetwork(model, one[output])


def run_once(
    model: ModelProto, shape: tuple[int, int, int], count: int, outputs: list[str]
) -> dict[str, Array] | str:
    """Returns the named tensors for ``count`` images of noise, or why ONNX Runtime does not run
    it."""
    probe = copy_model(model)
    del probe.graph.output[:]
    names = list(dict.fromkeys(outputs))
    probe.graph.output.extend(ValueInfoProto(name=name) for name in names)
    image = probe.graph.input[0]
    half = image.type.tensor_type.elem_type == TensorProto.FLOAT16
    noise = np.random.default_rng(count).standard_normal((count, *shape))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results = session.run(names, {image.name: noise.astype(np.float16 if half else np.float32)})
    except Exception as error:  # onnxruntime's errors have no common class of their own
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return dict(zip(names, results, strict=True))


def _set_batch(model: ModelProto, batch: str, shape: tuple[int, int, int]) -> None:
    image, output = model.graph.input[0], model.graph.output[0]
    kind = image.type.tensor_type.elem_type
    image.CopyFrom(helper.make_tensor_value_info(image.name, kind, [batch, *shape]))
    # The declared shape may hold the old size or batch; types are enough.
    output.type.tensor_type.ClearField("shape")


def _computed_shapes(model: ModelProto) -> list[str]:
    """Tensors made of shapes and constants alone that other nodes read."""
    known = {tensor.name for tensor in model.graph.initializer} | {""}
    made: set[str] = set()
    read: dict[str, None] = {}
    for node in model.graph.node:
        inputs = set(node.input)
        if node.op_type in _SHAPE_OPS or (inputs <= known | made and not inputs <= {""}):
            made.update(node.output)
        else:
            read.update({name: None for name in node.input if name in made})
    return list(read)


def _state_scales(graph: OnnxGraph, node: NodeProto, source: tuple[int, ...], sizes: Array) -> None:
    """Replaces a resize's sizes by scales where they mean the same."""
    words = texts(node)
    axes = integers(node, "axes", tuple(range(len(source))))
    if words.get("keep_aspect_ratio_policy", "stretch") != "stretch" or len(axes) != len(sizes):
        return
    lengths = [source[axis] for axis in axes]
    scales = [resize_scale(n, int(out)) for n, out in zip(lengths, sizes, strict=True)]
    exact = all(float(s) * n == out for s, n, out in zip(scales, lengths, sizes, strict=True))
    if words.get("mode", "nearest") == "nearest" and not exact:
        return  # a position on the edge of two pixels could fall to the other one
    full = np.ones(len(source), np.float32)
    full[list(axes)] = scales
    name = f"{node.name}_scales"
    graph.set_constant(name, full)
    graph.set_inputs(node, [node.input[0], "", name])
    for attribute in [a for a in node.attribute if a.name in ("axes", "keep_aspect_ratio_policy")]:
        node.attribute.remove(attribute)


def _follow_batch(
    graph: OnnxGraph, node: NodeProto, source: tuple[int, ...], one: Array, two: Array
) -> None:
    """Lets a reshape to a computed shape, of which only the batch varies, state the rest."""
    varying = np.flatnonzero(one != two)
    if len(varying) != 1 or not _zero_copies(node, one):
        return
    place = int(varying[0])
    stated = np.array(one)
    if place == 0 and source[:1] == (one[0],):
        stated[0] = 0  # the input's own
    elif -1 not in one:
        stated[place] = -1
    else:
        return
    graph.set_constant(f"{node.name}_shape", stated)
    graph.set_input(node, 1, f"{node.name}_shape")


def _free_batch(graph: OnnxGraph, node: NodeProto, source: tuple[int, ...]) -> None:
    """Lets a reshape to a batch of one take its input's batch instead.

    For one image both are the same; for several, the comparison with the source decides.
    """
    target = graph.constant(node.input[1])
    if target is None or target.size < 2 or source[:1] != (1,) or target[0] != 1:
        return
    if not _zero_copies(node, target):
        return
    freed = np.array(target)
    freed[0] = 0
    graph.set_constant(f"{node.name}_shape", freed)
    graph.set_input(node, 1, f"{node.name}_shape")


def _zero_copies(node: NodeProto, target: Array) -> bool:
    """Makes 0 in a reshape's target mean the input's own length, where no zero is meant."""
    if 0 in target:
        return integers(node, "allowzero", (0,)) == (0,)
    for attribute in [a for a in node.attribute if a.name == "allowzero"]:
        node.attribute.remove(attribute)
    return True
