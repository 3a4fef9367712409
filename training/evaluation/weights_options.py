"""Command line of ``test.py``: GluonCV's flags (scripts/segmentation/test.py), and ours."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from serving.imaging.geometry import Size
from training.evaluation.boundaries import DEFAULT_TOLERANCE
from training.flags import parse_floats, parse_size, parser
from training.options import TrainOptions, parse_options
from training.runs.checkpoint import RunFolder
from training.runs.saved_options import read_options

MODES = ("testval", "val")
# What a symbol is made for.
OF_SYMBOL = ("model", "backbone", "width", "aux", "output_stride", "height", "crop_width")


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation, or one folder of predictions.

    Attributes:
        run: the network and the data, as ``train.py`` is told them.
        weights: a ``.params`` file.
        score: with ``--eval``; predictions are written otherwise.
        mode: ``testval``: images and labels as they are; ``val``: centre crops of the crop's size.
        size: of the network's input; None: each image's own. Not with ``scales``.
        scales: of ``base_size``, under windows of the crop's size; none: whole images.
        processes: that share the images; None: one for each GPU of ``--ngpus``.
        output: where tables or predictions go; None (with ``score``): nowhere.
    """

    run: TrainOptions
    weights: Path
    score: bool
    split: str
    mode: str
    size: Size | None
    scales: tuple[float, ...]
    flip: bool
    limit: int | None
    processes: int | None
    legacy_miou: bool
    boundary_tolerance: float
    examples: int
    output: Path | None

    @property
    def crop(self) -> Size:
        """``--crop-size``."""
        return Size(self.run.height, self.run.crop_width)

    def protocol(self) -> str:
        """How images are shown to the network, in words."""
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


def _own_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("test.py", add_help=False, allow_abbrev=False)
    own = p.add_argument_group("only of test.py")
    own.add_argument("--eval", action="store_true", help="score; else predictions are written")
    own.add_argument("--split", default="val", help="train, val, with some datasets test")
    own.add_argument("--mode", choices=MODES, default=MODES[0], help="GluonCV's: testval takes "
                     "images as they are, val the centre of --crop-size after scaling")  # fmt: skip
    own.add_argument("--size", type=parse_size, metavar="N|HxW",
                     help="of the network's input; default: each image's own, to a multiple "
                     "of 32")  # fmt: skip
    own.add_argument("--scales", type=parse_floats, default=(), metavar="S,...",
                     help="show --base-size times these under sliding windows of --crop-size, "
                     "GluonCV's are 0.5,0.75,1,1.25,1.5,1.75; default: whole images, "
                     "once")  # fmt: skip
    own.add_argument("--flip", action="store_true", help="average with the mirror image")
    own.add_argument("--limit", type=int, help="only the first images")
    own.add_argument("--processes", type=int, help="that share the images; default: one for each "
                     "GPU of --ngpus")  # fmt: skip
    own.add_argument("--legacy-miou", action="store_true", help="also GluonCV's mean, in which "
                     "absent classes are 0")  # fmt: skip
    own.add_argument("--boundary-tolerance", type=float, default=DEFAULT_TOLERANCE,
                     help="share of the diagonal, of the boundary F-score; 0: none")  # fmt: skip
    own.add_argument("--examples", type=int, default=2, help="worst, median, best images of a "
                     "picture, each")  # fmt: skip
    own.add_argument("--output", type=Path, help="folder of tables and pictures, or predictions; "
                     "default of these: outdir")  # fmt: skip
    return p


def parse_evaluation(arguments: list[str]) -> EvaluationOptions:
    """Reads the command line; exits with a message on a wrong one."""
    own = _own_parser()
    if {"-h", "--help"} & set(arguments):
        own.print_help()
        print("\nnetwork, data and devices, as train.py has them:\n")
        parser().print_help()
        raise SystemExit(0)
    a, rest = own.parse_known_args(arguments)
    run = parse_options([*rest, "--eval"])
    if run.resume is None and not run.run.is_dir():
        own.error("--resume names the weights: a run folder or a .params file")
    weights = run.resume or run.run
    if weights.is_dir():
        weights = RunFolder(weights).best
    for flag in ("limit", "processes", "examples"):
        value = getattr(a, flag)
        if value is not None and value < 1:
            own.error(f"--{flag} is at least 1")
    if not 0 <= a.boundary_tolerance <= 1:
        own.error("--boundary-tolerance is a share of the diagonal, 0 to 1")
    if any(factor <= 0 for factor in a.scales):
        own.error("--scales are above 0")
    if a.scales and a.size:
        own.error("--scales shows windows of --crop-size: leave --size out")
    size = Size(*a.size) if a.size else None
    if a.mode == "val" and not a.scales and size is None:
        size = Size(run.height, run.crop_width)
    return EvaluationOptions(
        run=run, weights=weights, score=a.eval, split=a.split, mode=a.mode, size=size,
        scales=a.scales, flip=a.flip, limit=a.limit, processes=a.processes,
        legacy_miou=a.legacy_miou, boundary_tolerance=a.boundary_tolerance, examples=a.examples,
        output=a.output if a.eval else a.output or Path("outdir"),
    )  # fmt: skip


def at_size(options: EvaluationOptions, size: Size) -> TrainOptions:
    """The network's options at another input size.

    A run's own symbol is the network that was trained, at its size; where anything else is asked
    for (another output stride), the network is built again.
    """
    run, beside = options.run, RunFolder(options.weights.parent)
    wanted = replace(run, height=size.height, crop_width=size.width)
    if run.symbol is not None and run.symbol == beside.symbol:
        saved = read_options(beside.path)
        if any(getattr(wanted, name) != saved.get(name, getattr(run, name)) for name in OF_SYMBOL):
            return replace(wanted, symbol=None)
    return wanted
