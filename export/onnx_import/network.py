"""Makes a model of the contract from an ONNX segmentation network made elsewhere.

Input ``image`` uint8 [N, H, W, 3] RGB with the normalisation inside; outputs ``mask`` uint8
[N, H, W] and, where the network gives scores, ``logits`` float32 [N, C, h, w]. Source of the
contract: docs/decisions.md; docs/import.md says what networks are taken and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, shape_inference

from export.errors import IllegalSize, InvalidNetwork
from export.lowering.convert import BATCH, DATA
from export.onnx_import.outputs import (
    NONE,
    Labels,
    Scores,
    find_output,
    label_head,
    score_head,
)
from export.onnx_import.source import prepare_network, rename
from export.onnx_import.static_shapes import freeze_shapes
from export.passes.build import REWRITES
from export.passes.contract import (
    HEADS,
    IMAGE,
    MASK,
    check_classes,
    check_heads,
    fold_normalisation,
    mask_head,
    mask_type,
)
from export.passes.onnx_graph import OnnxGraph, Rewrite, integers, is_half, make_node
from export.symbols.networks import Pixels, Triple
from export.symbols.shapes import MAX_PIXELS


@dataclass(frozen=True)
class InputFormat:
    """The image that a network expects.

    Attributes:
        mean, std: three each, in the network's order of channels, of values up to ``maximum``.
        maximum: 1 or 255, the value of white before mean and std.
        bgr: blue comes first.
        channels_last: [N, H, W, 3] instead of [N, 3, H, W].

    Networks of one channel see the photo in gray; ``mean`` and ``std`` then are one number three
    times.
    """

    mean: Triple
    std: Triple
    maximum: int
    bgr: bool = False
    channels_last: bool = False

    @classmethod
    def of(cls, pixels: Pixels, bgr: bool | None = None, *, channels_last: bool) -> InputFormat:
        """Returns the format of a network that sees ``pixels``; ``bgr`` None is their own order."""
        blue_first = pixels.bgr if bgr is None else bgr
        maximum = 255 if max(pixels.std) < 0.01 else 1
        mean, std = (
            tuple(round(maximum * value, 12) for value in (v[::-1] if blue_first else v))
            for v in (pixels.mean, pixels.std)
        )
        return cls((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), maximum, blue_first,
                   channels_last)  # fmt: skip

    def __str__(self) -> str:
        numbers = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return "{} {} 0-{} mean {} std {}".format(
            "NHWC" if self.channels_last else "NCHW", "bgr" if self.bgr else "rgb", self.maximum,
            *numbers,
        )  # fmt: skip

    @property
    def pixels(self) -> Pixels:
        """Returns the same in RGB, of values from 0 to 1."""
        return Pixels(self._scale(self.mean), self._scale(self.std), self.bgr)

    def _scale(self, values: Triple) -> Triple:
        first, second, third = (value / self.maximum for value in values)
        return (third, second, first) if self.bgr else (first, second, third)


@dataclass(frozen=True)
class ImportOptions:
    """The facts about a network that its file does not hold.

    Attributes:
        classes: how many classes the labels name.
        size: height and width; None where the network's input is of one size.
        output: the output that holds the classes; None is the first.
        threshold: of a network with one channel: above it the second class is there.
        aligned: how a smaller output grows to the image: True with aligned corners, False with
            half-pixel centres, None is not known.
        heads: of mask, logits and confidence, one of the first two at least.
        channels: 3, or 1 of networks that see gray; None is what the input says.
    """

    input: InputFormat
    classes: int
    size: tuple[int, int] | None = None
    output: str | None = None
    threshold: float | None = None
    aligned: bool | None = None
    heads: tuple[str, ...] = HEADS
    channels: int | None = None


@dataclass(frozen=True)
class ImportedNetwork:
    """The model of the contract, and what became of the source.

    Attributes:
        batches: the source takes several images at a time, as far as its file says.
        passes: the rewrites that were applied.
        notes: one sentence each, for people.
        channels: of the source's input: 3, or 1 for gray.
    """

    model: ModelProto
    height: int
    width: int
    found: Labels | Scores
    batches: bool
    passes: tuple[str, ...]
    notes: tuple[str, ...]
    channels: int = 3


def import_network(source: ModelProto, options: ImportOptions) -> ImportedNetwork:
    """Builds the model of the contract from a network that ``read_network`` read.

    Raises ExportError, naming the remedy.
    """
    check_classes(options.classes, least=2)
    check_heads(options.heads)
    layout = options.input.channels_last
    model = prepare_network(source, options.output)
    channels = count_channels(model, options)
    height, width = image_size(model, options)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    shape = (height, width, channels) if layout else (channels, height, width)
    frozen = freeze_shapes(model, shape)
    try:
        found = find_output(frozen, options.classes, (height, width), layout)
    except InvalidNetwork as error:
        if len(source.graph.output) == 1:
            raise
        raise InvalidNetwork(f"{error} (the network gives {_list_outputs(source)})") from error
    notes = []
    if len(source.graph.output) > 1:
        others = [o.name for o in source.graph.output if o.name != model.graph.output[0].name]
        notes.append(f"output {model.graph.output[0].name}; left out: {', '.join(others)}")
    if isinstance(found, Labels):
        heads: Sequence[str] = (MASK,)
        label_head(model, found, height, width, mask_type(options.classes))
        notes.append(
            "the network outputs labels only: no logits, and masks are resized without smoothing"
        )
    else:
        heads = options.heads
        notes += score_head(model, found, (height, width), options.threshold, options.aligned)
        if found.activation == NONE and not found.argmax and _are_probabilities(frozen.sample):
            notes.append("the scores are probabilities, so confidences are not exact")
    OnnxGraph(model).drop_dead()
    _standard_input(model, options.input, channels, height, width)
    passes = _rewrite(model, options.input, channels)
    if channels == 1:
        _gray_input(model, height, width)
        notes.append("the network sees the photo in gray")
    if isinstance(found, Scores):
        mask_head(model, height, width, heads)
    OnnxGraph(model).drop_dead()
    model.producer_name, model.producer_version = "segserve", ""
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidNetwork(f"the imported network is not a valid ONNX graph: {reason}") from error
    return ImportedNetwork(
        model, height, width, found, not batch.dim_value, tuple(passes), tuple(notes), channels
    )


def _list_outputs(source: ModelProto) -> str:
    """Returns the names and shapes of a network's outputs, as its file has them."""
    shown = []
    for output in source.graph.output:
        lengths = [d.dim_param or d.dim_value or "?" for d in output.type.tensor_type.shape.dim]
        shown.append(f"{output.name} [{', '.join(map(str, lengths))}]")
    return ", ".join(shown)


def count_channels(model: ModelProto, options: ImportOptions) -> int:
    """Returns 3, or 1 for gray: what the network's input says, else the options, else 3.

    Raises InvalidNetwork for other networks, or where the options say otherwise.
    """
    image = model.graph.input[0]
    lengths = [d.dim_value for d in image.type.tensor_type.shape.dim]
    other, own = (lengths[1], lengths[3]) if options.input.channels_last else lengths[3:0:-2]
    channels = own or options.channels or 3
    if channels not in (1, 3):
        remedy = (
            f"with {other} at the other end, --layout"
            f" {'NCHW' if options.input.channels_last else 'NHWC'} would fit"
            if other in (1, 3)
            else "networks of photos, in colour (3) or gray (1), are served"
        )
        raise InvalidNetwork(f"the input {image.name} is {lengths}: {channels} channels; {remedy}")
    if options.channels not in (None, channels):
        raise InvalidNetwork(
            f"--channels {options.channels}, but the input {image.name} is {lengths}: leave it out"
        )
    values = (options.input.mean, options.input.std)
    if channels == 1 and any(len(set(numbers)) > 1 for numbers in values):
        raise InvalidNetwork(
            "a network of gray photos has one mean and one deviation: give one number to --mean and"
            " --std, or --pixels unit, byte or signed"
        )
    return channels


def image_size(model: ModelProto, options: ImportOptions) -> tuple[int, int]:
    """Returns height and width of a prepared network. Raises InvalidNetwork or IllegalSize."""
    image = model.graph.input[0]
    lengths = [d.dim_value for d in image.type.tensor_type.shape.dim]
    if lengths[0] > 1:
        raise InvalidNetwork(
            f"the input {image.name} takes {lengths[0]} images at a time; export the network for"
            " one image, or for any number"
        )
    own = lengths[1:3] if options.input.channels_last else lengths[2:]
    if options.size is None and not all(own):
        raise IllegalSize(
            f"the network takes images of any size ({lengths}); choose one with --size HEIGHTxWIDTH"
        )
    height, width = options.size or (own[0], own[1])
    if any(
        length and length != wanted for length, wanted in zip(own, (height, width), strict=True)
    ):
        raise IllegalSize(
            f"the network is built for {own[0]}x{own[1]}; leave --size out, or export it again for"
            f" {height}x{width}"
        )
    if height * width > MAX_PIXELS:
        raise IllegalSize(
            f"--size {height}x{width} is too large: expected at most {MAX_PIXELS} pixels"
        )
    return height, width


def _are_probabilities(sample: NDArray[np.generic]) -> bool:
    return bool(sample.min() >= 0 and sample.max() <= 1)


def _standard_input(
    model: ModelProto, expected: InputFormat, channels: int, height: int, width: int
) -> None:
    """Makes the input ``data`` float32 [N, channels, height, width], still normalised."""
    image = model.graph.input[0]
    kind = image.type.tensor_type.elem_type
    rename(model.graph, {image.name: "source_input"})
    graph = OnnxGraph(model)
    current = DATA
    first = []
    if kind != TensorProto.FLOAT:
        first.append(helper.make_node("Cast", [current], ["source_typed"], "typed", to=kind))
        current = "source_typed"
    if expected.channels_last:
        # Networks made for NHWC often begin by going to NCHW themselves: both ways cancel.
        for node in graph.consumers("source_input"):
            if node.op_type == "Transpose" and integers(node, "perm", ()) == (0, 3, 1, 2):
                graph.rename(node.output[0], current)
                graph.remove(node)
        if graph.consumers("source_input"):
            first.append(make_node("Transpose", [current], "source_nhwc", perm=[0, 2, 3, 1]))
            current = "source_nhwc"
    graph.rename("source_input", current)
    graph.insert_first(first)
    image.CopyFrom(
        helper.make_tensor_value_info(DATA, TensorProto.FLOAT, [BATCH, channels, height, width])
    )


def _gray_input(model: ModelProto, height: int, width: int) -> None:
    """Lets a model whose ``image`` is uint8 [N, height, width, 1] take RGB instead.

    Gray is 0.299 red + 0.587 green + 0.114 blue in 65,536ths, rounded: Pillow's and OpenCV's, and
    exact in float32.
    """
    graph = OnnxGraph(model)
    rename(model.graph, {IMAGE: "image_gray"})
    shares = np.array([19595, 38470, 7471]) / 65536
    graph.set_constant("gray_shares", shares.astype(np.float32))
    graph.set_constant("gray_half", np.array(0.5, np.float32))
    graph.set_constant("gray_axis", np.array([3], np.int64))
    steps: tuple[tuple[str, list[str], str, dict[str, int]], ...] = (
        ("Cast", [IMAGE], "gray_colours", {"to": TensorProto.FLOAT}),
        ("Mul", ["gray_colours", "gray_shares"], "gray_weighted", {}),
        ("ReduceSum", ["gray_weighted", "gray_axis"], "gray_sum", {"keepdims": 1}),
        ("Add", ["gray_sum", "gray_half"], "gray_raised", {}),
        ("Floor", ["gray_raised"], "gray_whole", {}),
        ("Cast", ["gray_whole"], "image_gray", {"to": TensorProto.UINT8}),
    )
    graph.insert_first(
        [helper.make_node(op, read, [made], made, **more) for op, read, made, more in steps]
    )
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, [BATCH, height, width, 3])
    )


def _rewrite(model: ModelProto, expected: InputFormat, channels: int) -> list[str]:
    """Runs the exporter's exact rewrites, as far as the network's precision allows."""
    passes = []
    if not is_half(model):
        graph = OnnxGraph(model)
        passes = [name for name, rewrite in REWRITES.items() if _applies(rewrite, graph)]
    fold_normalisation(model, expected.pixels)
    return [*passes, "fold_normalisation", "mask_head"]


def _applies(rewrite: Rewrite, graph: OnnxGraph) -> bool:
    try:
        return bool(rewrite.apply(graph).applied)
    except shape_inference.InferenceError:
        return False  # ONNX does not infer the shapes of this network
