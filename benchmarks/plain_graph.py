"""The graph that an obvious export gives: what the rewrites and the cut are measured against.

The network as the symbol has it, its auxiliary outputs left out; the image normalised in float as a
data loader would, and an argmax over logits at the image's size behind it. The same contract, the
same weights.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper

from export.lowering.convert import BATCH, DATA, convert
from export.passes.build import prune_heads
from export.passes.contract import IMAGE, MASK
from export.passes.onnx_graph import OnnxGraph
from export.symbols.graph import Graph
from export.symbols.networks import IMAGENET
from export.symbols.params import Parameters
from export.symbols.shapes import retarget


def plain_model(symbol: Graph, parameters: Parameters, height: int, width: int) -> ModelProto:
    """``image`` uint8 ``[N,H,W,3]`` -> ``mask`` uint8 ``[N,H,W]``, nothing rewritten.

    For networks whose first output has the image's size, as the published ones.
    """
    model = convert(prune_heads(retarget(symbol, height, width)), parameters, height, width)
    graph = OnnxGraph(model)
    logits = model.graph.output[0].name
    for name, values in (("image_mean", IMAGENET.mean), ("image_std", IMAGENET.std)):
        graph.set_constant(name, np.array(values, np.float32).reshape(3, 1, 1))
    graph.set_constant("image_largest", np.array(255, np.float32))
    graph.insert_first(
        [
            helper.make_node("Cast", [IMAGE], ["image_float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["image_float", "image_largest"], ["image_unit"]),
            helper.make_node("Transpose", ["image_unit"], ["image_nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("Sub", ["image_nchw", "image_mean"], ["image_centred"]),
            helper.make_node("Div", ["image_centred", "image_std"], [DATA]),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("ArgMax", [logits], ["labels"], axis=1, keepdims=0),
            helper.make_node("Cast", ["labels"], [MASK], to=TensorProto.UINT8),
        ]
    )
    image = helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [BATCH, height, width, 3])
    model.graph.input[0].CopyFrom(image)
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(MASK, TensorProto.UINT8, [BATCH, height, width])
    )
    checker.check_model(model)
    return model
