"""The command line of ``test.py``: GluonCV's flags (scripts/segmentation/test.py), and ours."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from serving.imaging.geometry import Size
from training.evaluation.boundaries import DEFAULT_TOLERANCE
from training.flags import add_flags, flag, parse_floats, parse_size
from training.options import TrainOptions, make_parser, parse_options
from training.runs.checkpoint import RunFolder
from training.runs.saved_options import read_options

# What a symbol is made for.
OF_SYMBOL = ("model", "backbone", "width", "aux", "output_stride", "height", "crop_width")


def parse_network_size(text: str) -> Size:
    """Returns the size of ``768`` or ``352x480``."""
    return Size(*parse_size(text))


_own = partial(flag, "only of test.py")


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of one evaluation, or of one folder of predictions.

    Attributes:
        run: the network and the data, as ``train.py`` has them.
        weights: a ``.params`` file.
        score: with ``--eval``; predictions are written otherwise.
        size: of the network's input; None: each image's own. Not with ``scales``.
        scales: of ``base_size``, under windows of the crop's size; none: whole images.
        processes: that share the images; None: one for each GPU of ``--ngpus``.
        output: where tables or predictions go; None (with ``score``): nowhere.
    """

    run: TrainOptions
    weights: Path
    score: bool = _own(
        False, "score the weights; without it predictions are written", name="--eval"
    )
    split: str = _own("val", "train, val, or with some datasets test")
    mode: str = _own(
        "testval", "testval: images as they are; val: GluonCV's, the centre of --crop-size after "
        "scaling", choices=("testval", "val"),
    )  # fmt: skip
    size: Size | None = _own(
        None, "size of the network's input; default: each image's own, to a multiple of 32",
        parse=parse_network_size, metavar="N|HxW",
    )  # fmt: skip
    scales: tuple[float, ...] = _own(
        (), "show the image at --base-size times each of these, in sliding windows of --crop-size; "
        "GluonCV's are 0.5,0.75,1,1.25,1.5,1.75; default: whole images, once",
        parse=parse_floats, metavar="S,...",
    )  # fmt: skip
    flip: bool = _own(False, "average with the mirror image")
    limit: int | None = _own(None, "score only this many images")
    processes: int | None = _own(
        None, "number of processes that share the images; default: one for each GPU of --ngpus"
    )
    legacy_miou: bool = _own(False, "also print GluonCV's mean, in which absent classes are 0")
    boundary_tolerance: float = _own(
        DEFAULT_TOLERANCE,
        "tolerance of the boundary F-score, as a share of the diagonal; 0: no boundary score",
    )
    examples: int = _own(2, "number of worst, of median and of best images in the picture")
    output: Path | None = _own(
        None, "folder for tables and pictures, or for predictions; default for predictions: outdir"
    )

    @property
    def crop(self) -> Size:
        """Returns the size of ``--crop-size``."""
        return Size(self.run.height, self.run.crop_width)

    def protocol(self) -> str:
        """Describes how images are shown to the network."""
        shown = f"centre crops of {self.crop}" if self.mode == "val" else "images in their own size"
        if self.scales:
            factors = ", ".join(f"{factor:g}" for factor in self.scales)
            seen = f"scales {factors} of {self.run.base_size}, windows of {self.crop}"
        elif self.size is not None:
            seen = f"network at {self.size}"
        else:
            seen = "network at each image's size"
        mirrored = ", with mirror images" if self.flip else ""
        return f"{self.mode}: {shown}; {seen}{mirrored}"


def parse_evaluation(arguments: list[str]) -> EvaluationOptions:
    """Returns the options of a command line; exits with a message if it is wrong."""
    own = argparse.ArgumentParser("test.py", add_help=False, allow_abbrev=False)
    add_flags(own, EvaluationOptions)
    if {"-h", "--help"} & set(arguments):
        own.print_help()
        print("\nnetwork, data and devices, as train.py has them:\n")
        make_parser().print_help()
        raise SystemExit(0)
    a, rest = own.parse_known_args(arguments)
    run = parse_options([*rest, "--eval"])
    if run.resume is None and not run.run.is_dir():
        own.error("--resume is missing: expected a run folder or a .params file")
    weights = run.resume or run.run
    if weights.is_dir():
        weights = RunFolder(weights).best
    for name in ("limit", "processes", "examples"):
        value = getattr(a, name)
        if value is not None and value < 1:
            own.error(f"--{name} is at least 1")
    if not 0 <= a.boundary_tolerance <= 1:
        own.error("--boundary-tolerance is a share of the diagonal, 0 to 1")
    if any(factor <= 0 for factor in a.scales):
        own.error("--scales are above 0")
    if a.scales and a.size:
        own.error("--scales shows windows of --crop-size: leave --size out")
    if a.mode == "val" and not a.scales and a.size is None:
        a.size = Size(run.height, run.crop_width)
    if not a.score:
        a.output = a.output or Path("outdir")
    return EvaluationOptions(run, weights, **vars(a))


def at_size(options: EvaluationOptions, size: Size) -> TrainOptions:
    """Returns the network's options at another input size.

    A run's own symbol is the network that was trained, at its size; if anything else is requested
    (another output stride), the network is built again.
    """
    run, beside = options.run, RunFolder(options.weights.parent)
    wanted = replace(run, height=size.height, crop_width=size.width)
    if run.symbol is not None and run.symbol == beside.symbol:
        saved = read_options(beside.path)
        if any(getattr(wanted, name) != saved.get(name, getattr(run, name)) for name in OF_SYMBOL):
            return replace(wanted, symbol=None)
    return wanted
