"""Adds the outputs of the contract: ``logits`` at the head's resolution, ``mask`` at the image's.

``mask`` is the argmax of the logits resized to the image with aligned corners, as the networks
are trained; of equal classes the lower id wins.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, TensorProto, helper

from export.convert import BATCH
from export.errors import ExportError
from export.onnx_graph import OnnxGraph
from export.resize import resize_nodes

MASK, LOGITS = "mask", "logits"
HEADS = (MASK, LOGITS)
MAX_CLASSES = 255


def mask_head(model: ModelProto, height: int, width: int, heads: Sequence[str] = HEADS) -> None:
    """Edits in place a model whose first output is float32 logits [N, C, h, w].

    Afterwards its outputs are those of ``heads``: ``mask`` uint8 [N, height, width] and
    ``logits`` float32 [N, C, h, w]. Raises ExportError for other heads or over 255 classes.
    """
    if not heads or set(heads) - set(HEADS):
        raise ExportError(f"--head takes mask, logits or both, not {','.join(heads) or 'nothing'}")
    graph = OnnxGraph(model)
    source = graph.graph.output[0]
    _, classes, *lengths = (d.dim_value for d in source.type.tensor_type.shape.dim)
    if classes > MAX_CLASSES:
        raise ExportError(f"{classes} classes; a uint8 mask holds {MAX_CLASSES} and the ignored")
    producer = graph.producer(source.name)
    if producer is not None:
        for consumer in graph.consumers(source.name):
            for position, name in enumerate(consumer.input):
                if name == source.name:
                    consumer.input[position] = LOGITS
        producer.output[list(producer.output).index(source.name)] = LOGITS
    outputs = []
    if MASK in heads:
        nodes, constants = resize_nodes(
            "logits_full_size", LOGITS, lengths, (height, width), aligned=True
        )
        full = "logits_full_size" if nodes else LOGITS
        graph.graph.node.extend(nodes)
        graph.graph.initializer.extend(constants)
        graph.graph.node.append(
            helper.make_node("ArgMax", [full], ["labels"], name="labels", axis=1, keepdims=0)
        )
        graph.graph.node.append(
            helper.make_node("Cast", ["labels"], [MASK], name=MASK, to=TensorProto.UINT8)
        )
        outputs.append(
            helper.make_tensor_value_info(MASK, TensorProto.UINT8, [BATCH, height, width])
        )
    if LOGITS in heads:
        shape = [BATCH, classes, *lengths]
        outputs.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    del graph.graph.output[:]
    graph.graph.output.extend(outputs)
