"""``--precision``: a float32 graph to fp16 or int8, judged before it may be written."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from onnx import ModelProto

from export.errors import ImagesMissing, PrecisionFailed, UnsupportedPrecision
from export.passes.onnx_graph import copy_model, is_half, name_nodes
from export.precision.gate import Comparison, Gate, Limits, describe, describe_scores, pass_gate
from export.precision.half import round_to_half, to_half
from export.precision.images import (
    ImageSource,
    PreparedImages,
    Selection,
    calibration_source,
    validation_source,
)
from export.precision.quantise import Recipe, calibrate, convolutions, has_vnni, quantise
from export.precision.search import search, tries_table
from export.precision.served_graph import TimeRatio, compare_times, serve_graph
from export.progress import Steps
from export.verify import find_not_finite, telling_images
from serving.engines.graph import find_precision
from serving.imaging.geometry import Size

PRECISIONS = ("fp32", "fp16", "int8")
# Without --search: the fastest first, and the next where it loses too much.
RECIPES = (Recipe(), Recipe(first_float=True))


@dataclass(frozen=True)
class PrecisionOptions:
    """The options of a lower precision.

    Attributes:
        precision: one of ``PRECISIONS``.
        dataset: names the splits to calibrate on and to judge by.
        root: the dataset's folder.
        calibration: a folder of images to calibrate on instead.
        calibration_images: how many at most.
        validation_images: how many to judge by at most; None: all.
        limits: what may be lost.
        search: try many recipes of int8.
        force: accept what the limits refuse.
    """

    precision: str = "fp32"
    dataset: str | None = None
    root: Path | None = None
    calibration: Path | None = None
    calibration_images: int = 64
    validation_images: int | None = None
    limits: Limits = field(default_factory=Limits)
    search: bool = False
    force: bool = False


@dataclass(frozen=True)
class Lowered:
    """The graph to write, and what to report of it.

    Attributes:
        accuracy: measured, with its protocol; None where there was nothing to measure on.
        provenance: how it was made.
        outcome: a line for the terminal.
    """

    model: ModelProto
    accuracy: str | None = None
    provenance: tuple[str, ...] = ()
    outcome: str = ""

    def accuracy_after(self, stated: str | None) -> str | None:
        """Returns the accuracy for the repository: what the user stated, then what was measured."""
        return "; ".join(part for part in (stated, self.accuracy) if part) or None


@dataclass(frozen=True)
class _Made:
    """The graph of a lower precision, its provenance, and what a search knows of it already."""

    model: ModelProto
    notes: tuple[str, ...] = ()
    comparison: Comparison | None = None
    time: TimeRatio | None = None


def check_options(options: PrecisionOptions) -> None:
    """Raises at once what would otherwise come after minutes.

    UnsupportedPrecision; ImagesMissing where int8 has nothing to calibrate on, or a folder that
    was named does not hold what it should.
    """
    if options.precision not in PRECISIONS:
        raise UnsupportedPrecision(
            f"--precision {options.precision} is not a valid precision: expected one of"
            f" {', '.join(PRECISIONS)}"
        )
    if options.search and options.precision != "int8":
        raise UnsupportedPrecision("--search is for int8; add --precision int8")
    if options.precision == "int8":
        calibration_source(options.calibration, options.dataset, options.root)
    _judges(options)


def lower_precision(
    model: ModelProto, options: PrecisionOptions, classes: int, steps: Steps
) -> Lowered:
    """Makes and judges the graph that ``options`` describe; ``model`` stays as it is.

    Args:
        model: a float32 graph of the contract, batch norms folded.
        classes: how many it distinguishes.

    Raises:
        AccuracyLost: it costs more than the limits allow, and is not forced.
        ImagesMissing, InvalidImages, PrecisionFailed, UnsupportedPrecision: as their texts say.
    """
    fp32 = options.precision == "fp32"
    steps("measuring the accuracy" if fp32 else f"making {options.precision}")
    check_options(options)
    source = _judges(options)
    if fp32:
        return _score(model, source, classes, steps)
    if (own := find_precision(model)) != "fp32" or is_half(model):
        named_so = "int8" if own == "int8" else "half precision"
        raise UnsupportedPrecision(
            f"the network is in {named_so} already; leave --precision {options.precision} out,"
            " or bring it in float32"
        )
    named = copy_model(model)
    name_nodes(named)
    _check_finite(named, "fp32")
    gate: Gate | None = None
    if source is not None:
        gate = Gate(named, source, classes, steps.part("scoring fp32", len(source)))
    if options.precision == "fp16":
        made = _Made(to_half(named))
        with serve_graph(made.model):  # the engine takes it
            pass
    elif gate is None:
        raise ImagesMissing(
            f"int8 is judged on real images, and {options.dataset} has no validation split there;"
            " name its folder with --root, or a folder of photos with --calibration DIR"
        )
    else:
        made = _quantise(named, options, gate, steps)
    _check_finite(made.model, options.precision)
    if gate is None or source is None:
        outcome = "not judged: no images were named"
        return Lowered(made.model, None, ("not judged", *made.notes), outcome)
    comparison = made.comparison
    if comparison is None:
        on_image = steps.part(f"scoring {options.precision}", len(gate))
        fp16 = options.precision == "fp16"
        comparison = gate.compare(round_to_half(made.model) if fp16 else made.model, on_image)
    excess = pass_gate(comparison, options.limits, force=options.force)
    accuracy = describe(comparison, source.title)
    forced = () if excess is None else (f"forced: {excess}",)
    outcome = "; ".join((*forced, f"{options.precision}: {accuracy}"))
    if options.precision == "int8":  # on a CPU fp16 is for a GPU that is elsewhere
        image = PreparedImages(source, _size(named))[0]
        begin = partial(steps.part, "timing")
        time = made.time or compare_times([made.model], named, image, begin)[0]
        outcome += f"; {time} of fp32's time here"
    return Lowered(made.model, accuracy, (*made.notes, *forced), outcome)


def _quantise(model: ModelProto, options: PrecisionOptions, gate: Gate, steps: Steps) -> _Made:
    if not convolutions(model):
        raise UnsupportedPrecision("the graph has no convolutions to quantise; use fp16")
    source = calibration_source(options.calibration, options.dataset, options.root)
    chosen = Selection(source, options.calibration_images)
    images = PreparedImages(chosen, _size(model))
    calibrated = f"calibrated on {len(images)} images of {source.title}"
    if options.search:
        found = search(model, images, gate, options.limits, steps)
        steps.show(tries_table(found.tries, found.chosen))
        kept = found.chosen
        notes = [calibrated, f"int8, of {len(found.tries)} recipes: {kept.recipe}"]
        if not kept.recipe.reduce_range:
            notes.append(_saturation())
        return _Made(found.model, tuple(notes), kept.comparison, kept.time)
    ranges = calibrate(model, images, RECIPES[0].method, steps.part("calibrating", len(images)))
    tried: list[tuple[Comparison, _Made]] = []
    for recipe in RECIPES:
        made = quantise(model, ranges, recipe)
        comparison = gate.compare(made, steps.part(f"scoring {recipe}", len(gate)))
        tried.append((comparison, _Made(made, (calibrated, f"int8: {recipe}"), comparison)))
        if options.limits.excess(comparison) is None:
            return tried[-1][1]
    return min(tried, key=lambda one: one[0].loss)[1]


def _saturation() -> str:
    """Returns what the gate could see of 8-bit weights, which CPUs without VNNI may add wrongly."""
    if has_vnni():
        return "judged on a CPU with VNNI; on one without, sums of 8-bit weights may saturate"
    return "judged on a CPU without VNNI, where sums of 8-bit weights may saturate"


def _score(model: ModelProto, source: ImageSource | None, classes: int, steps: Steps) -> Lowered:
    """Returns float32 as it is, scored where there are labels to score it by."""
    if source is None or not source.labelled:
        return Lowered(model)
    before = Gate(model, source, classes, steps.part("scoring", len(source))).before
    accuracy = describe_scores(before, source.title)
    return Lowered(model, accuracy, (), f"fp32: {accuracy}")


def _check_finite(model: ModelProto, precision: str) -> None:
    """Raises PrecisionFailed where a graph does not give numbers, which its labels may hide."""
    size = _size(model)
    # A CPU computes fp16 in float32; what the rounding adds to the graph is nobody's node.
    shown = round_to_half(model) if precision == "fp16" else model
    found = find_not_finite(shown, telling_images(size.height, size.width), model)
    if found is not None:
        remedy = (
            "are its parameters those of a finished training?"
            if precision == "fp32"
            else "values overflow at this precision: use --precision fp32, or train with weight"
            " decay so that the activations stay small"
        )
        raise PrecisionFailed(
            f"the network in {precision} does not give numbers: {found}; nothing was written;"
            f" {remedy}"
        )


def _judges(options: PrecisionOptions) -> ImageSource | None:
    # float32 needs no judge: it is scored only where the user says on what.
    if options.precision == "fp32" and options.root is None:
        return None
    source = validation_source(options.calibration, options.dataset, options.root)
    return None if source is None else Selection(source, options.validation_images)


def _size(model: ModelProto) -> Size:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return Size(dims[1].dim_value, dims[2].dim_value)
